"""The rendezvous of ranks, with threads in place of ranks."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cluster.errors import ClusterTimeout, StaleMessage
from cluster.meeting import Meeting
from data_shards.errors import UserError


def join(
    meeting: Meeting, rank: int, key: tuple[int, int] = (1, 0), timeout_s: float = 5.0, **change: object
) -> object:
    arguments = {"world_size": 3, "terms": {"k": 4}, "work": lambda offers: dict(offers)} | change
    return meeting.join(key, rank, offer=rank * 10, timeout_s=timeout_s, **arguments)  # type: ignore[arg-type]


def together(meeting: Meeting, ranks: list[int], **change: object) -> list[Future[object]]:
    pool = ThreadPoolExecutor(8)
    futures = [pool.submit(join, meeting, rank, **change) for rank in ranks]  # type: ignore[arg-type]
    pool.shutdown(wait=False)
    return futures


def test_work_is_done_once_and_all_get_it() -> None:
    calls = []

    def work(offers: dict[int, object]) -> dict[int, object]:
        calls.append(1)
        time.sleep(0.05)
        return dict(offers)

    meeting = Meeting()
    results = [f.result() for f in together(meeting, [2, 0, 1, 1, 0], work=work)]
    assert results == [{0: 0, 1: 10, 2: 20}] * 5
    assert join(meeting, 1, work=work) == results[0]  # asked again later
    assert len(calls) == 1


def test_missing_ranks_are_named() -> None:
    with pytest.raises(ClusterTimeout, match=r"waited 0.2 s for embeddings of ranks \[0, 2\]"):
        join(Meeting(), 1, timeout_s=0.2)


def test_a_newer_attempt_sends_the_older_home() -> None:
    meeting = Meeting()
    (old,) = together(meeting, [0], key=(1, 5))
    time.sleep(0.1)
    new = together(meeting, [0, 1, 2], key=(2, 4))
    with pytest.raises(StaleMessage, match="superseded by clustering 4 of attempt 2"):
        old.result(timeout=5)
    assert new[0].result(timeout=5) == {0: 0, 1: 10, 2: 20}
    with pytest.raises(StaleMessage):
        join(meeting, 1, key=(1, 6))


def test_a_failure_reaches_every_rank_and_may_be_tried_again() -> None:
    def fail(offers: dict[int, object]) -> None:
        raise UserError("no")

    meeting = Meeting()
    for future in together(meeting, [0, 1, 2], work=fail):
        with pytest.raises(UserError, match="no"):
            future.result(timeout=5)
    assert [f.result(timeout=5) for f in together(meeting, [0, 1, 2])] == [{0: 0, 1: 10, 2: 20}] * 3


def test_ranks_must_agree() -> None:
    meeting = Meeting()
    together(meeting, [0])
    time.sleep(0.1)
    with pytest.raises(UserError, match="disagree about clustering 0"):
        join(meeting, 1, terms={"k": 5})
    assert threading.active_count() >= 1
