"""How a launch says that its run ended: by the ledger, whatever agents and status.json say."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import RunTaken
from launch import ledger
from launch.ledger import Ledger
from launch.status import read_status, write_status
from launch.torchrun import RunFailed, outcome


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.5)
    monkeypatch.setattr(ledger, "BEAT_S", 0.05)
    write_status(tmp_path, state="running")
    return Ledger(tmp_path)


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("preempted", 75)])
def test_an_end_on_record_is_the_outcome(book: Ledger, state: str, code: int) -> None:
    book.begin("mine", 1, 3).close()
    book.end(1, state, code, epoch=2, step=7)
    assert outcome(book.run, "mine") == code
    assert (read_status(book.run)["state"], read_status(book.run)["step"]) == (state, 7)


def test_a_failure_is_told_with_its_own_code_and_cause(book: Ledger) -> None:
    book.begin("mine", 2, 3).close()
    book.fault(1, 0, 5, "rank 0 lost its peers")
    book.fault(1, 1, 70, "ValueError: odd")
    with pytest.raises(RunFailed, match="ValueError: odd") as failure:
        outcome(book.run, "mine")
    assert failure.value.exit_code == 70
    assert read_status(book.run)["state"] == "failed"


def test_ranks_that_died_without_a_word(book: Ledger) -> None:
    book.begin("mine", 1, 3).close()
    with pytest.raises(RunFailed, match="without a word") as failure:
        outcome(book.run, "mine")
    assert failure.value.exit_code == 70


@pytest.mark.parametrize("earlier", [False, True])
def test_ranks_that_could_not_begin(book: Ledger, earlier: bool) -> None:
    """Also after an attempt of another launch that died: the folder is not taken, the ranks failed."""
    if earlier:
        book.begin("another", 1, 3).close()
    with pytest.raises(RunFailed, match="could not begin") as failure:
        outcome(book.run, "mine")
    assert failure.value.exit_code == 70


def test_another_launch_at_work_or_in_between(book: Ledger) -> None:
    lease = book.begin("another", 1, 3)
    status = (book.run / "status.json").read_bytes()
    with pytest.raises(RunTaken):
        outcome(book.run, "mine")
    lease.close()
    book.begin("mine", 1, 3).close()
    book.begin("another", 1, 3).close()
    with pytest.raises(RunFailed, match="taken over") as failure:
        outcome(book.run, "mine")
    assert failure.value.exit_code == 6
    assert (book.run / "status.json").read_bytes() == status  # it is the other's


def test_a_run_that_another_launch_completed_is_complete(book: Ledger) -> None:
    book.begin("another", 1, 3).close()
    book.end(1, "completed", 0)
    assert outcome(book.run, "mine") == 0
