"""Runs as tasks of a Ray cluster: the one that RAY_ADDRESS names, or a local one.

A task asks for as many CPUs as its ranks have threads, and for the GPUs of `ray.gpus_per_worker`; its ranks are on one
node. In it the run is the same command as without Ray: with `cluster.backend: ray` its actors are on the cluster of
RAY_ADDRESS, or on a Ray of the run's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch import services
from launch.compare.cells import Cell
from launch.compare.runner import LOG, Ended, command
from launch.config import RunConfig
from launch.ray_room import check_node
from launch.status import known_status


def threads(config: RunConfig) -> int:
    """Return the threads of a rank: what is configured, or what one of Ray's workers would have."""
    return config.launch.threads or max(1, int(config.ray.cpus_per_worker))


def task_resources(config: RunConfig) -> dict[str, float]:
    """Return what Ray sets aside for a run."""
    ranks = config.launch.nproc
    found = {"CPU": float(ranks * threads(config)), "GPU": ranks * config.ray.gpus_per_worker}
    return {name: amount for name, amount in found.items() if amount}


@contextmanager
def ray_executor(cells: Sequence[Cell], out: Path) -> Iterator[tuple[RayTasks, int]]:
    """Join or start a Ray; yield what runs cells on it, and how many fit at a time at most.

    Raises:
        NoRoom: no node could ever hold one of the runs.
    """
    address = os.environ.get("RAY_ADDRESS")
    out.mkdir(parents=True, exist_ok=True)
    given = {"RAY_ADDRESS": address} if address else {}
    with services.ray_at(address, out, None if address else services.LOOPBACK):
        from launch import ray_tasks  # after: Ray reads the authentication mode once, when it is imported

        nodes = ray_tasks.nodes()
        for cell in cells:
            check_node(task_resources(cell.config), nodes, cell.name)
        least = min(task_resources(cell.config)["CPU"] for cell in cells)
        room = max(1, int(sum(node.get("CPU", 0.0) for node in nodes) // least))
        yield RayTasks({**ray_tasks.variables(["SUBSPACE__"]), **given}), room


class RayTasks:
    """Runs as tasks of the Ray that this process has joined."""

    def __init__(self, variables: dict[str, str]) -> None:
        from launch import ray_tasks

        self._make, self._tasks = ray_tasks.Command, ray_tasks.Tasks()
        self._variables, self._cells = variables, dict[str, Cell]()

    def start(self, cell: Cell) -> None:
        """Queue a run; what its launcher prints goes to RUN/logs/launch.log."""
        self._cells[cell.name] = cell
        words = list(command(cell)[1:])
        if cell.config.launch.threads is None:
            words.append(f"launch.threads={threads(cell.config)}")
        given = self._make(tuple(words), os.getcwd(), os.path.abspath(cell.run / LOG), self._variables)
        resources = task_resources(cell.config)
        self._tasks.start(cell.name, given, resources["CPU"], resources.get("GPU", 0.0))

    def ended(self) -> list[Ended]:
        """Return the runs whose task has ended, after a moment."""
        return [self._ended(*found) for found in self._tasks.ended()]

    def _ended(self, name: str, code: int, reason: str | None) -> Ended:
        cell = self._cells[name]
        if reason is None and code == 0 and not known_status(cell.run):
            reason = f"its node does not see {cell.run}: give an --out on storage that all nodes share"
        return Ended(cell, code, reason)

    def stop(self) -> None:
        """Have all runs save and stop."""
        self._tasks.stop()

    def kill(self) -> None:
        """End all runs."""
        self._tasks.kill()
