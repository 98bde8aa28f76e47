"""`subspace compare`: from a sweep file to its runs and tables."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UserError
from data_shards.files import write_text
from launch.compare.cells import Cell, cells, check
from launch.compare.progress import Progress, say
from launch.compare.runner import Executor, LocalProcesses, Outcome, carry_out, command
from launch.compare.sweep_file import Sweep, read_sweep


@dataclass(frozen=True)
class CompareOptions:
    """What the command line says beside the sweep file."""

    out: Path | None = None
    parallel: int | None = None
    ray: bool = False
    tables_only: bool = False
    dry_run: bool = False
    as_json: bool = False


def compare(path: Path, options: CompareOptions) -> int:
    """Carry out what is left of a sweep, write its tables and print them; return the exit code.

    Raises:
        UserError: the sweep file, a configuration or a run folder is not in order, before anything is started.
        DataIntegrityError: a completed run's files are damaged.
    """
    sweep = read_sweep(path)
    out = options.out or Path("runs") / sweep.name
    found = cells(sweep, path, out, _cores(options))
    left = [cell for cell in found if cell.state() != "completed"]
    if options.dry_run:
        check(left, sweep.split, build_shards=False)
        _list(found)
        return 0
    outcome = Outcome()
    if left and not options.tables_only:
        check(left, sweep.split, build_shards=True)
        outcome = _run(sweep, out, found, left, options)
    if outcome.stopped:
        say("stopped; the same command goes on, and --tables-only makes tables of what there is")
    else:
        write_tables(sweep, path, out, found, outcome.failed)
        print((out / ("compare.json" if options.as_json else "compare.md")).read_text(), end="")
        say(f"page: {out / 'compare.html'}")
    for name, reason in outcome.failed.items():
        say(f"failed: {name}: {reason}")
    return outcome.exit_code


def _cores(options: CompareOptions) -> int | None:
    """Return the cores that a run may take where its configuration does not say; None: as it likes."""
    if options.parallel is not None and options.parallel < 1:
        raise UserError(f"--parallel {options.parallel}: at least one run at a time")
    if options.ray or options.parallel in (None, 1):
        return None
    return max(1, (os.cpu_count() or 1) // options.parallel)


def _list(found: Sequence[Cell]) -> None:
    for cell in found:
        state = {"new": "run", "completed": "complete"}.get(cell.state(), "go on")
        print(f"{state:<8}  {cell.name}  {shlex.join(['subspace', *command(cell)[3:]])}")


def _run(sweep: Sweep, out: Path, found: Sequence[Cell], left: Sequence[Cell], options: CompareOptions) -> Outcome:
    names = {cell.name for cell in left}
    done = [cell for cell in found if cell.name not in names]
    with ExitStack() as ends:
        executor: Executor = LocalProcesses()
        num_parallel = options.parallel or 1
        if options.ray:
            from launch.compare.on_ray import ray_executor

            executor, room = ends.enter_context(ray_executor(left, out))
            num_parallel = options.parallel or room
        return carry_out(left, executor, num_parallel, Progress(sweep, left, done, num_parallel).tell)


def write_tables(sweep: Sweep, path: Path, out: Path, found: Sequence[Cell], reasons: dict[str, str]) -> None:
    """Write OUT/compare.md, .csv, .json and .html, and the figures in OUT/plots."""
    from launch.compare import page, tables
    from launch.compare.comparison import compared

    comparison = compared(sweep, out, found, reasons, say)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.md", tables.markdown(comparison))
    write_text(out / "compare.csv", tables.csv_text(comparison))
    write_text(out / "compare.json", tables.as_json(comparison))
    page.write(comparison, path)
