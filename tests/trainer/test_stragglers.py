"""Stragglers, on times written by hand and on real ranks of which one is slow."""

from __future__ import annotations

import time

from tests.ranks import run_on_ranks
from trainer import distributed
from trainer.stragglers import Stopwatch, Straggler, slowest


def test_rank_that_takes_five_times_as_long_is_found_with_its_phase() -> None:
    assert slowest([[1.0, 4.0], [1.0, 20.0], [1.0, 4.2]], 22.0) == Straggler(1, "step", 20.0, 4.1)
    assert slowest([[9.0, 4.0], [1.0, 4.0]], 14.0) == Straggler(0, "data", 9.0, 1.0)


def test_ranks_that_are_alike_slow_together_or_a_little_apart_are_not() -> None:
    assert slowest([[1.0, 4.0]], 5.0) is None
    assert slowest([[1.0, 40.0], [1.0, 41.0]], 45.0) is None
    assert slowest([[1.0, 4.0], [1.0, 9.0]], 12.0) is None
    assert slowest([[0.01, 4.0], [0.09, 4.0]], 5.0) is None  # nine times as long, and nothing of the epoch


def test_worst_phase_counts_when_both_are_slow() -> None:
    assert slowest([[1.0, 1.0], [5.0, 11.0]], 16.0) == Straggler(1, "step", 11.0, 1.0)


def _slow_rank(phase: str) -> tuple[int, str] | None:
    slow = distributed.rank() == 1

    def batches() -> object:
        for _ in range(6):
            time.sleep(0.2 if slow and phase == "data" else 0.0)
            yield 1

    watch = Stopwatch()
    for _ in watch.fetched(batches()):  # type: ignore[arg-type]
        time.sleep(0.2 if slow and phase == "step" else 0.0)
        distributed.barrier()
    found = watch.straggler()
    return None if found is None else (found.rank, found.phase)


def test_slow_rank_is_named_on_every_rank_though_all_take_as_long() -> None:
    assert run_on_ranks(_slow_rank, 2, "step") == [(1, "step")] * 2
    assert run_on_ranks(_slow_rank, 2, "data") == [(1, "data")] * 2
