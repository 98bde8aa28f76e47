"""Which rank keeps the others waiting, and with what.

Ranks wait for each other at every step, so a slow one slows all of them down and looks no slower than they do. What
tells them apart is the time that each is busy: fetching its batch ("data"), or computing ("step", all the rest but the
waits in collectives). Compared once per epoch; a straggler is reported, never ended.

Legend: W ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from trainer import distributed

PHASES = ("data", "step")
FACTOR = 3.0  # as busy as this many typical ranks
SHARE = 0.25  # of the epoch's time that it costs everybody
T = TypeVar("T")


@dataclass(frozen=True)
class Straggler:
    """A rank that needs `seconds` for a phase of an epoch where the others typically need `typical_s`."""

    rank: int
    phase: str
    seconds: float
    typical_s: float


class Stopwatch:
    """This rank's times of an epoch, from when it is made."""

    def __init__(self) -> None:
        self._began, self._waited_s, self._data_s = time.monotonic(), distributed.waited_s(), 0.0

    def fetched(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and take the time that each takes to come."""
        iterator = iter(batches)
        while True:
            began = time.monotonic()
            batch = next(iterator, None)
            self._data_s += time.monotonic() - began
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave something out: a checkpoint is rank 0's work, and no sign of a slow rank."""
        began, waited_s = time.monotonic(), distributed.waited_s()
        yield
        self._began += time.monotonic() - began
        self._waited_s += distributed.waited_s() - waited_s

    def straggler(self) -> Straggler | None:
        """Return the rank that all others wait for, the same answer on every rank; every rank asks."""
        epoch_s = time.monotonic() - self._began
        step_s = epoch_s - self._data_s - (distributed.waited_s() - self._waited_s)
        return slowest(distributed.gather_numbers([self._data_s, step_s]), epoch_s)


def slowest(times: list[list[float]], epoch_s: float) -> Straggler | None:
    """Return the worst straggler of (W, phases) seconds, if there is one."""
    found = []
    for phase, seconds in zip(PHASES, zip(*times, strict=True), strict=True):
        rank = max(range(len(seconds)), key=seconds.__getitem__)
        others = [*seconds[:rank], *seconds[rank + 1 :]]
        typical_s = median(others) if others else seconds[rank]
        if seconds[rank] > FACTOR * typical_s and seconds[rank] - typical_s > SHARE * epoch_s:
            found.append(Straggler(rank, phase, seconds[rank], typical_s))
    return max(found, key=lambda one: one.seconds - one.typical_s, default=None)
