"""Kill and resume: the run ends with the bytes of the undisturbed run (deterministic mode, real Ray, real ranks)."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.runs import ROOT, content_hash, disturbed, events, find, kill, lines, steps, subspace, wait_until

pytestmark = pytest.mark.slow
CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"


def train(digits: Path, run: Path, *words: str) -> list[str | Path]:
    return ["train", CONFIG, f"data.shards={digits}", "--deterministic", "--run-dir", run, *words]


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subspace(*train(digits, run))
    assert done.returncode == 0, done.stderr
    assert len(events(run, "growth")) == 1
    assert len(events(run, "recluster")) == 1
    return run


def same_result(run: Path, undisturbed: Path) -> None:
    assert content_hash(run) == content_hash(undisturbed)
    assert [(s["step"], s["loss"]) for s in steps(run)] == [(s["step"], s["loss"]) for s in steps(undisturbed)]
    mine, theirs = (json.loads((r / "evaluation" / "test.json").read_text()) for r in (run, undisturbed))
    assert mine == theirs
    assert json.loads((run / "status.json").read_text())["state"] == "completed"


def test_killed_rank_in_mid_epoch(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) >= 12, "the middle of the second epoch")
        kill(process, "launch rank", str(run))

    assert disturbed(train(digits, run), disturb) == 0
    assert len(events(run, "restart")) == 1
    same_result(run, undisturbed)


def test_killed_controller_and_kmeans_actors(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) >= 4, "the first epoch")
        before = {child.pid for child in find(process, "ray::")}
        victims = {
            kill(process, "ray::ControllerActor"),
            kill(process, "ray::ShardActor"),
            kill(process, "ray::CoordinatorActor"),
        }
        assert len(victims) == 3
        assert victims <= before

    assert disturbed(train(digits, run), disturb) == 0
    assert events(run, "restart") == []
    same_result(run, undisturbed)


def test_stop_and_resume_after_the_split(digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Conformance check 9: blocks, K, labels and the loss curve are those of the undisturbed run."""
    run = tmp_path / "run"
    stopped = subspace(*train(digits, run, "--stop-after-step", "20"))
    assert stopped.returncode == 75, stopped.stderr
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["num_subspaces"], status["exit_code"]) == ("preempted", 20, 2, 75)
    assert subspace(*train(digits, run)).returncode == 2  # a used folder is not taken without --resume
    done = subspace(*train(digits, run, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    same_result(run, undisturbed)
    assert [e["event"] for e in lines(run / "events.jsonl") if e["event"] in ("preempted", "restart", "completed")] == [
        "preempted",
        "restart",
        "completed",
    ]
