"""What the ledger's events say, on histories written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataIntegrityError
from launch.history import attempts, checked, fruitless_restarts, last_commit, run_id, standing, taken_by

Event = dict[str, Any]


def begin(attempt: int, launch: str = "a") -> Event:
    return {"kind": "begin", "attempt": attempt, "launch": launch, "owner": {"pid": 1}, "world_size": 2}


def commit(attempt: int, step: int) -> Event:
    return {"kind": "commit", "attempt": attempt, "epoch": 0, "step": step, "checkpoint": f"step-{step}", "sha256": ""}


def fault(attempt: int, exit_code: int, reason: str) -> Event:
    return {"kind": "fault", "attempt": attempt, "rank": 1, "exit_code": exit_code, "reason": reason}


def end(attempt: int, state: str, exit_code: int = 0) -> Event:
    return {"kind": "end", "attempt": attempt, "state": state, "exit_code": exit_code, "reason": None, "step": 7}


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([], 0),
        ([begin(1)], 0),  # the first attempt of a launch is no restart
        ([begin(1), commit(1, 0), begin(2), begin(3)], 2),
        ([begin(1), commit(1, 0), begin(2), commit(2, 0), begin(3), commit(3, 0)], 2),
        ([begin(1), commit(1, 0), begin(2), commit(2, 5), begin(3)], 1),
        ([begin(1), commit(1, 5), begin(2), commit(2, 5), begin(3), commit(3, 4)], 2),  # as far as before is not newer
        ([begin(1), begin(2), end(2, "preempted", 75), begin(3)], 1),
        ([*[e for n in range(1, 11) for e in (begin(n), end(n, "preempted", 75))]], 0),
        ([begin(1), begin(2), begin(3), begin(4, "b")], 0),  # a new launch starts counting again
        ([begin(1), begin(2, "b"), begin(3, "b")], 1),
    ],
)
def test_restarts_without_a_newer_checkpoint(events: list[Event], count: int) -> None:
    made = attempts(events)
    assert fruitless_restarts(made, made[-1].launch if made else "a") == count


def test_the_cause_is_not_the_loss_of_a_peer() -> None:
    lost, cause = fault(1, 5, "lost its peers"), fault(1, 70, "ValueError: odd")
    assert attempts([begin(1), lost, cause])[0].fault == cause
    assert attempts([begin(1), lost])[0].fault == lost
    assert attempts([begin(1)])[0].fault is None


def test_standing_is_that_of_the_last_attempt() -> None:
    events = [begin(1), end(1, "preempted", 75)]
    assert standing(events) == {"state": "preempted", "exit_code": 75, "reason": None, "step": 7, "attempt": 1}
    assert standing([*events, begin(2)]) == {}
    assert standing([]) == {}


def test_names_and_commits() -> None:
    taken = [{"kind": "taken", "launch": "a", "run": "r"}, {"kind": "taken", "launch": "b", "run": "r"}]
    assert (run_id([]), run_id(taken)) == ("", "r")
    assert taken_by(taken, "b") and not taken_by(taken, "c")
    assert last_commit([begin(1), commit(1, 3), commit(1, 4)]) == commit(1, 4)
    assert last_commit([begin(1)]) is None


@pytest.mark.parametrize(
    "events",
    [
        [{"kind": "party"}],
        [{"kind": 3}],
        [{"attempt": 1}],
        [{"kind": "commit", "attempt": 1, "epoch": 1, "step": 1, "checkpoint": "x"}],  # of an attempt that never began
        [{"kind": "taken", "launch": 3, "run": "x"}],
        [{"kind": "begin", "attempt": 1, "launch": "x", "owner": {}}],
        [{"kind": "begin", "attempt": True, "launch": "x", "owner": {}}],
    ],
)
def test_records_that_nobody_writes_are_refused(events: list[Event]) -> None:
    with pytest.raises(DataIntegrityError, match=r"Record 1 of ledger is none that this program writes"):
        checked(events, Path("ledger"))
