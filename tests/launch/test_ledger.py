"""One writer: leases, fencing, and who is taken for alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import RunTaken
from launch import history, ledger
from launch.ledger import Ledger, LostLease, NoProgress
from launch.status import read_status


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PATIENCE_S", 1.0)
    monkeypatch.setattr(ledger, "BEAT_S", 0.05)


def holder(run: Path) -> subprocess.Popen[str]:
    """Return a process that has begun an attempt of launch "other" and lives."""
    code = (
        "import sys, time; from pathlib import Path; from launch import ledger; ledger.BEAT_S = 0.05;"
        "ledger.Ledger(Path(sys.argv[1])).begin('other', 1, 3); print('begun', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, run], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_attempts_count_up_and_a_run_keeps_its_name(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    book.take("a")
    first = book.begin("a", 2, 3)
    second = book.begin("a", 2, 3)  # the same launch starts its ranks again: nobody is asked
    book.take("b")
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.run_id == second.run_id == history.run_id(book.events()) != ""
    first.close()
    second.close()
    assert [path.name for path in tmp_path.glob(".lease-*")] == []


def test_a_live_holder_keeps_others_out_and_a_dead_one_does_not(tmp_path: Path) -> None:
    process = holder(tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(RunTaken, match=rf"process {process.pid} on .* \(attempt 1\)"):
        Ledger(tmp_path).begin("mine", 1, 3)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    process.kill()
    process.wait()
    lease = Ledger(tmp_path).begin("mine", 1, 3)
    assert lease.attempt == 2
    lease.close()


def test_a_stopped_holder_is_replaced_and_may_not_commit(tmp_path: Path) -> None:
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)
    lease = Ledger(tmp_path).begin("mine", 1, 3)
    assert lease.attempt == 2
    lease.close()
    process.kill()
    process.wait()


def test_a_replaced_attempt_cannot_commit_or_end(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    old, new = book.begin("a", 1, 3), book.begin("a", 1, 3)
    with pytest.raises(LostLease, match="replaced by attempt 2"), old.committing():
        raise AssertionError("not reached")
    assert not book.end(old.attempt, "completed", 0)
    with new.committing() as record:
        record({"epoch": 0, "step": 3, "checkpoint": "step-3", "sha256": ""})
    assert book.end(new.attempt, "completed", 0)
    assert not book.end(new.attempt, "failed", 70)  # said once
    with pytest.raises(LostLease), new.committing():
        raise AssertionError("not reached")
    commit = history.last_commit(book.events())
    assert commit is not None and (commit["attempt"], commit["step"]) == (2, 3)
    old.close()
    new.close()


def test_no_progress_ends_the_run_on_record(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    for _ in range(4):
        book.begin("a", 1, 3).close()
    book.fault(4, 0, 70, "ValueError: odd")
    with pytest.raises(NoProgress, match=r"3 restarts in a row .* ValueError: odd") as refusal:
        book.begin("a", 1, 3)
    assert refusal.value.exit_code == 7
    found = history.standing(book.events())
    assert (found["state"], found["exit_code"], found["attempt"]) == ("failed", 7, 4)
    lease = book.begin("b", 1, 3)  # a person tries again
    assert lease.attempt == 5
    lease.close()


def test_launches_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ledger.LAUNCH, "mine")
    assert ledger.launch_id() == "mine"
    monkeypatch.delenv(ledger.LAUNCH)
    assert ledger.launch_id() == ledger.launch_id()
    assert f":{os.getppid()}:" in ledger.launch_id()


@pytest.mark.parametrize("content", [None, "{", '{"state": "running"}'])
def test_the_status_of_an_ended_run_is_told_without_its_file(tmp_path: Path, content: str | None) -> None:
    Ledger(tmp_path).begin("a", 1, 3).close()
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    Ledger(tmp_path).end(1, "preempted", 75, "asked to", epoch=1, step=7)
    found = read_status(tmp_path)
    assert {name: found[name] for name in ("state", "exit_code", "step", "attempt")} == {
        "state": "preempted", "exit_code": 75, "step": 7, "attempt": 1,
    }  # fmt: skip
