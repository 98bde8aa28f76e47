"""`subspace compare`: methods x seeds x datasets, and their table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def compare(
    sweep: Positional[Path],
    /,
    *,
    out: Path | None = None,
    parallel: int | None = None,
    ray: bool = False,
    tables_only: bool = False,
    dry_run: bool = False,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Run methods, seeds and datasets of a sweep file, what is left of them, and make the tables.

    Args:
        sweep: YAML file, see configs/compare/.
        out: folder of runs and tables; runs/NAME when not given.
        parallel: runs at a time; 1, or on Ray as many as it has room for, when not given.
        ray: make every run a task of a Ray, that of RAY_ADDRESS or a local one.
        tables_only: start nothing, make the tables of what there is.
        dry_run: check every configuration, list the runs, start nothing.
        as_json: print all figures as JSON instead of the tables.
    """
    from launch.compare.command import CompareOptions
    from launch.compare.command import compare as run_compare

    return run_compare(sweep, CompareOptions(out, parallel, ray, tables_only, dry_run, as_json))
