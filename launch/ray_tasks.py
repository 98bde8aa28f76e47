"""Commands as tasks of a Ray: each waits for room, runs on some node as a process of its own, and can be told to stop.

A node must see the folders of the command under the same paths. The processes get what the node has in its environment,
without Ray's own variables of the worker: a run that starts or joins a Ray must not take itself for a part of this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.processes import die_with_parent
from launch.ray_bell import Bell

_POLL_S = 0.2
_KEPT = ("RAY_AUTH_", "RAY_TMPDIR")
_MAX_TASKS = 10_000  # that may listen to one bell


@dataclass(frozen=True)
class Command:
    """A process: the words after the interpreter, where it works, its log, variables on top of the node's."""

    words: tuple[str, ...]
    folder: str
    log: str
    variables: Mapping[str, str]


class Tasks:
    """The commands that were handed to Ray, by name."""

    def __init__(self) -> None:
        self._bell: Any = ray.remote(Bell).options(num_cpus=0, max_concurrency=_MAX_TASKS).remote()
        self._names: dict[Any, str] = {}

    def start(self, name: str, command: Command, num_cpus: float, num_gpus: float) -> None:
        """Queue a command; a node that dies costs a repetition on another."""
        task: Any = ray.remote(run_command).options(
            name=name, num_cpus=num_cpus, num_gpus=num_gpus or None, max_retries=3, scheduling_strategy="SPREAD"
        )
        self._names[task.remote(command, self._bell)] = name

    def ended(self, timeout_s: float = _POLL_S) -> list[tuple[str, int, str | None]]:
        """Return (name, exit code, what Ray says of a task that is lost) of tasks that ended since the last call."""
        if not self._names:
            return []
        done, _ = ray.wait(list(self._names), num_returns=1, timeout=timeout_s)
        return [(self._names.pop(reference), *_answer(reference)) for reference in done]

    def stop(self) -> None:
        """Have running commands end by SIGTERM, and those that wait for room not begin."""
        ray.get(self._bell.ring.remote())

    def kill(self) -> None:
        """End all commands at once."""
        for reference in self._names:
            ray.cancel(reference, force=True)


def _answer(reference: Any) -> tuple[int, str | None]:
    try:
        return int(ray.get(reference)), None
    except ray.exceptions.RayError as error:
        return 70, f"the task was lost: {str(error).strip().splitlines()[0]}"


def nodes() -> list[dict[str, float]]:
    """Return the resources of every node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def run_command(command: Command, bell: Any) -> int:
    """Run a command in this task; return its exit code, 75 when it was stopped before it began."""
    stop = threading.Event()
    threading.Thread(target=_listen, args=(bell, stop), daemon=True).start()
    if stop.wait(_POLL_S):
        return 75
    log = Path(command.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command.words],
            cwd=command.folder,
            env=environment(os.environ, command.variables),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    told = False
    while process.poll() is None:
        if stop.is_set() and not told:
            told = True
            process.send_signal(signal.SIGTERM)
        time.sleep(_POLL_S)
    return process.returncode


def environment(node: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a command: the node's without those of a Ray worker, this package, what is given."""
    own = {name: value for name, value in node.items() if not name.startswith("RAY_") or name.startswith(_KEPT)}
    code = str(Path(__file__).parent.parent)
    return {**own, "PYTHONPATH": os.pathsep.join(filter(None, (code, own.get("PYTHONPATH")))), **given}


def _listen(bell: Any, stop: threading.Event) -> None:
    with suppress(ray.exceptions.RayError):  # its owner is gone, and this task with it
        ray.get(bell.wait.remote())
        stop.set()


def variables(names: Sequence[str]) -> dict[str, str]:
    """Return this process's variables of these names or prefixes, which the runs need too."""
    return {name: value for name, value in os.environ.items() if name.startswith(tuple(names))}
