"""The shared processes of a run, Controller and k-means actors: started once, joined by every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.controller import ControllerCore
from cluster.journal import Journal
from cluster.local import LocalCluster
from launch import build
from launch.config import RunConfig


def connect(config: RunConfig, run: Path, attempt: int) -> Any:
    """Return this rank's client of the run's shared processes."""
    settings = config.cluster
    if settings.backend == "local":
        controller = ControllerCore(build.controller_config(config), Journal(run / "journal.jsonl"))
        return LocalCluster(
            controller,
            attempt=attempt,
            num_shards=settings.num_shards or 1,
            num_iterations=settings.num_iterations,
            backend=settings.index,
        )
    raise AssertionError("ray comes next")
