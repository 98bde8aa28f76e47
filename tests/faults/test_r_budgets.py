"""Restarts are budgeted by progress; how a run stands is what its ledger says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import history
from launch.ledger import Ledger
from tests.faults.conftest import Recorder
from tests.faults.whole import Fault, broken, local
from tests.runs import content_hash, environment, events, status, subspace

long = pytest.mark.matrix


def attempts(run: Path) -> list[history.Attempt]:
    return history.attempts(Ledger(run).events())


@pytest.mark.matrix
def test_r1_a_crash_at_the_same_step_every_time_stops_the_run(digits: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    crash = Fault("exception", rank=0, call=1, once=False)
    assert broken(tmp_path, local(digits, run, "--nproc", "1"), crash) == 7
    assert len(attempts(run)) == 4  # and three restarts
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 7)
    assert "3 restarts in a row" in status(run)["reason"]
    assert "injected" in status(run)["reason"]
    again = subspace(*local(digits, run, "--nproc", "1", "--resume", "auto"))
    assert again.returncode == 0, again.stderr  # a person may try again, and it is mended
    record("R1", "an exception at the first step of every attempt", restarts=3, rc=7)


@pytest.mark.matrix
def test_r1_crashes_that_let_the_run_get_on_do_not_stop_it(digits: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    crash = Fault("exception", rank=0, call=7, once=False)  # every attempt gets past one checkpoint
    assert broken(tmp_path, local(digits, run, "--nproc", "1"), crash) == 0
    restarts = len(attempts(run)) - 1
    assert restarts > 3
    record("R1", "an exception after every checkpoint", restarts=restarts, rc=0)


@pytest.mark.matrix
def test_r2_preemptions_do_not_touch_the_budget(digits: Path, tmp_path: Path, record: Recorder) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    assert subspace(*local(digits, alone, "--nproc", "1")).returncode == 0
    for number in range(1, 11):
        words = local(digits, run, "--nproc", "1", "--resume", "auto", "--stop-after-step", str(2 * number))
        assert subspace(*words).returncode == 75
    assert history.fruitless_restarts(attempts(run), attempts(run)[-1].launch) == 0
    assert subspace(*local(digits, run, "--nproc", "1", "--resume", "auto")).returncode == 0
    assert len(events(run, "preempted")) == 10
    assert content_hash(run) == content_hash(alone)
    record("R2", "ten preemptions", restarts=0, steps_lost=0, bitwise=True, rc=0)


@pytest.mark.parametrize("damage", ["failed", "running", "garbage"])
def test_r4_the_ledger_has_the_last_word(finished: Path, record: Recorder, damage: str) -> None:
    path = finished / "status.json"
    true = json.loads(path.read_text())
    wrong: dict[str, Any] = {**true, "state": damage, "exit_code": 1, "reason": "torchrun says 1"}
    path.write_text("{" if damage == "garbage" else json.dumps(wrong))
    told = subspace("status", finished, "--json")
    word = subprocess.run(
        [sys.executable, "-m", "launch.status", finished], env=environment(), capture_output=True, text=True
    )
    again = subspace("train", finished / "config.yaml", "--run-dir", finished, "--resume", "auto")
    assert json.loads(told.stdout)["state"] == "completed", told.stderr
    assert json.loads(told.stdout)["exit_code"] == 0
    assert word.stdout.strip() == "completed"
    assert (again.returncode, "complete already" in again.stdout) == (0, True)
    assert json.loads(path.read_text())["state"] == "completed"
    record("R4", f"status.json says {damage}, the ledger says completed", rc=0, contradictions_handled=True)


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    done = subspace(*local(digits, run, "--nproc", "1", "train.epochs=1"))
    assert done.returncode == 0, done.stderr
    return run
