"""What a comparison says while it works: a line per run, and about how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from statistics import mean

from data_shards.errors import DataIntegrityError, printable
from launch.compare import words
from launch.compare.cells import Cell
from launch.compare.results import Result, read_result, split_of, title
from launch.compare.sweep_file import Sweep
from launch.spoken import spoken


def say(text: str) -> None:
    """Print a line to standard error; standard output is for results."""
    print(printable(text), file=sys.stderr, flush=True)


class Progress:
    """Counts runs and learns how long they take; `done` are those that need not be started."""

    def __init__(self, sweep: Sweep, left: Sequence[Cell], done: Sequence[Cell], num_parallel: int) -> None:
        self._sweep, self._total, self._num_parallel = sweep, len(left) + len(done), num_parallel
        self._left = {cell.name: cell for cell in left}
        self._seconds: list[tuple[Cell, float]] = []
        self._started: dict[str, float] = {}
        for cell in done:
            result = _result(cell)
            if result is not None and result.wall_s > 0:
                self._seconds.append((cell, result.wall_s))
        if done:
            say(f"{len(done)} of {self._total} runs are complete already")

    def tell(self, event: str, cell: Cell, seconds: float) -> None:
        """Say what happened to a run."""
        if event == "started":
            self._started[cell.name] = time.monotonic()
            say(f"started   {cell.name}  ({cell.run})")
            return
        del self._left[cell.name]
        if event == "completed":
            self._seconds.append((cell, seconds))
        scores = f"{self._scores(cell)}, " if event == "completed" else ""
        number = self._total - len(self._left)
        say(f"{event:<9} {cell.name}  {scores}{spoken(seconds)}; {number} of {self._total}{self._rest()}")

    def _scores(self, cell: Cell) -> str:
        names = [m for m in ("nmi", "recall_at_1", "map_at_r") if m in self._sweep.metrics] or self._sweep.metrics[:2]
        result = _result(cell)
        if result is None:
            return "no scores"
        split = split_of([result], self._sweep.split)
        with suppress(DataIntegrityError):
            return ", ".join(f"{title(m)} {result.score(split, m):.{words.DIGITS}f}" for m in names)
        return "no scores"

    def _rest(self) -> str:
        if not self._left or not self._seconds:
            return ""
        seconds = sum(self._expected(cell) for cell in self._left.values())
        at_once = min(self._num_parallel, len(self._left))
        return f", about {spoken(seconds / at_once)} left"

    def _expected(self, cell: Cell) -> float:
        """Return what a run still takes, by runs of its method and dataset, else of its dataset, else by all."""
        same = [s for known, s in self._seconds if (known.dataset, known.method) == (cell.dataset, cell.method)]
        alike = [s for known, s in self._seconds if known.dataset == cell.dataset]
        whole = mean(same or alike or [s for _, s in self._seconds])
        started = self._started.get(cell.name)
        return whole if started is None else max(0.0, whole - (time.monotonic() - started))


def _result(cell: Cell) -> Result | None:
    try:
        return read_result(cell)
    except DataIntegrityError:
        return None  # a line of progress is not the place; the tables say it
