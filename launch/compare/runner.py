"""Carry runs out, several at a time, in processes of their own: one that crashes is one empty cell, not the end.

What became of a run is in its folder (status.json, ledger), never in an exit code alone; so a comparison that was
stopped, or killed, is gone on with by the same command.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cluster.processes import die_with_parent
from data_shards.errors import UserError
from launch.compare.cells import Cell
from launch.status import known_status

LOG = "logs/launch.log"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_POLL_S = 0.1
_TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Ended:
    """A run's process has ended; `reason` is what the process that looked after it knows."""

    cell: Cell
    code: int
    reason: str | None = None


class Executor(Protocol):
    """Where runs are carried out."""

    def start(self, cell: Cell) -> None:
        """Start a run, soon or now."""

    def ended(self) -> list[Ended]:
        """Return what has ended since the last call; may wait for a moment."""

    def stop(self) -> None:
        """Have all runs save and stop; returns at once."""

    def kill(self) -> None:
        """End all runs without saving."""


@dataclass
class Outcome:
    """How a comparison's runs went: failures by the name of the cell, and whether it was stopped."""

    failed: dict[str, str] = field(default_factory=dict)
    put_aside: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """75 when something is left that can be gone on with, 70 when runs failed, else 0."""
        return 75 if self.stopped else 70 if self.failed else 75 if self.put_aside else 0


def carry_out(
    cells: Sequence[Cell], executor: Executor, num_parallel: int, tell: Callable[[str, Cell, float], None]
) -> Outcome:
    """Run all cells to their end, `num_parallel` at a time; a signal has the running ones save, and starts no other.

    `tell(event, cell, seconds)` hears of "started", "completed", "preempted" and "failed" runs. A second signal kills.
    """
    outcome, waiting, started = Outcome(), list(cells), dict[str, float]()
    unfinished = {cell.name for cell in cells}
    with _signals() as seen:
        heeded = 0
        while waiting or started:
            if seen and not heeded:
                outcome.stopped, heeded = True, 1
                waiting.clear()
                executor.stop()
            elif len(seen) > 1 and heeded == 1:
                heeded = 2
                executor.kill()
            while len(started) < num_parallel and not seen:
                cell = _next(waiting, unfinished, outcome)
                if cell is None:
                    break
                executor.start(cell)
                started[cell.name] = time.monotonic()
                tell("started", cell, 0.0)
            for end in executor.ended():
                tell(_concluded(end, outcome), end.cell, time.monotonic() - started.pop(end.cell.name))
                unfinished.discard(end.cell.name)
    return outcome


def _next(waiting: list[Cell], unfinished: set[str], outcome: Outcome) -> Cell | None:
    """Take the first cell whose needs are there out of `waiting`; None if none is ready. One whose needs have failed
    is put on record as failed itself."""
    for cell in list(waiting):
        lost = [name for name in cell.needs if name in outcome.failed or name in outcome.put_aside]
        if lost:
            waiting.remove(cell)
            unfinished.discard(cell.name)
            outcome.failed[cell.name] = f"it starts from {lost[0]}, which is not complete"
        elif unfinished.isdisjoint(cell.needs):
            waiting.remove(cell)
            return cell
    return None


def _concluded(end: Ended, outcome: Outcome) -> str:
    """Put on record how a run ended; return the word for it."""
    try:
        state = end.cell.state()
    except UserError as error:  # a damaged status.json is the end of one run only
        outcome.failed[end.cell.name] = str(error)
        return "failed"
    if state == "completed":
        return state
    if state == "preempted" or outcome.stopped:
        outcome.put_aside.append(end.cell.name)
        return "preempted"
    outcome.failed[end.cell.name] = _reason(end)
    return "failed"


def _reason(end: Ended) -> str:
    """Return why a run failed: the sentence of its launcher, else its status, else how its process ended."""
    lines = _last_lines(end.cell.run / LOG)
    said = [line.removeprefix("subspace: ") for line in lines if line.startswith("subspace: ")]
    known = said[-1] if said else known_status(end.cell.run).get("reason") or end.reason
    how = f"killed by signal {-end.code}" if end.code < 0 else f"exit code {end.code}"
    return str(known) if known else ": ".join([how, *lines[-1:]])


def _last_lines(log: Path) -> list[str]:
    """Return the last lines of a log that are not empty."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask for an end, while this lasts."""
    seen: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in _SIGNALS}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LocalProcesses:
    """Runs as processes of this machine. They end with this one, also when it is killed."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}

    def start(self, cell: Cell) -> None:
        """Start a run; what its launcher prints goes to RUN/logs/launch.log."""
        log = cell.run / LOG
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            # A session of its own: Ctrl-C in a terminal would otherwise reach the run as well, twice.
            process = subprocess.Popen(
                command(cell),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._running[cell.name] = cell, process

    def ended(self) -> list[Ended]:
        """Return the runs whose process has ended, after a moment."""
        time.sleep(_POLL_S)
        found = [
            Ended(cell, process.returncode) for cell, process in self._running.values() if process.poll() is not None
        ]
        for end in found:
            del self._running[end.cell.name]
        return found

    def stop(self) -> None:
        """Have all runs save and stop."""
        for _, process in self._running.values():
            process.terminate()

    def kill(self) -> None:
        """End all runs; their ranks and actors end with them."""
        for _, process in self._running.values():
            process.kill()


def command(cell: Cell) -> list[str]:
    """Return the command of a run."""
    config, *rest = cell.words
    return [sys.executable, "-m", "launch", "train", config, "--run-dir", str(cell.run), *rest]
