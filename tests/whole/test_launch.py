"""The command line from outside: other people's torchrun, signals, numbers that go wrong, and what is left behind."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.agents import standalone
from tests.runs import ROOT, assert_nothing_left, disturbed, environment, events, status, steps, subspace, wait_until

pytestmark = pytest.mark.slow
GROWTH = ROOT / "configs" / "smoke" / "growth.yaml"
FIXED = ROOT / "configs" / "smoke" / "fixed.yaml"
EXPLODES = ("optim.name=sgd", "optim.lr=1e6", "optim.weight_decay=1e6")  # not finite within a few steps


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the fixed-K recipe with fine-tuning."""
    run = tmp_path_factory.mktemp("finished") / "run"
    done = subspace("train", FIXED, f"data.shards={digits}", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout
    return run


def test_fixed_subspaces_train_apart_and_then_together(finished: Path) -> None:
    trained = [line["subspace"] for line in steps(finished)]
    assert len(trained) == 24
    assert set(trained[:16]) == {0, 1, 2}
    assert trained[16:] == [None] * 8  # the fine-tuning epoch trains the whole embedding
    assert status(finished)["num_subspaces"] == 3


def test_run_folder_holds_what_the_design_lists(finished: Path) -> None:
    for name in ("config.yaml", "env.json", "status.json", "metrics.jsonl", "events.jsonl", "train.log", "report.html"):
        assert (finished / name).stat().st_size > 0, name
    for split in ("validation", "test"):
        scores = json.loads((finished / "evaluation" / f"{split}.json").read_text())
        assert {"nmi", "ami", "recall", "macro_recall_at_1", "map_at_r", "r_precision", "num_lone_queries"} <= set(
            scores
        )
        assert set(scores["recall"]) == {"1", "2", "4", "8"}
        assert [part["width"] for part in scores["per_subspace"]] == [11, 11, 10]
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (finished / "exported" / name).exists()
    assert not (finished / ".ray_token").exists()
    line = steps(finished)[0]
    assert set(line) == {"epoch", "step", "subspace", "loss", "lr", "images_per_s", "time"}
    assert {"state", "epoch", "step", "num_subspaces", "world_size", "attempt", "exit_code", "reason"} <= set(
        status(finished)
    )


def test_evaluate_repeats_the_scores_of_the_run(finished: Path) -> None:
    before = json.loads((finished / "evaluation" / "test.json").read_text())
    done = subspace("evaluate", finished, "--split", "test", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["recall"]["1"] == pytest.approx(before["recall"]["1"], abs=0.01)
    assert again["nmi"]["mean"] == pytest.approx(before["nmi"]["mean"], abs=0.02)


def test_status_of_a_finished_run(finished: Path) -> None:
    assert json.loads(subspace("status", finished, "--json").stdout)["state"] == "completed"
    word = subprocess.run(
        [sys.executable, "-m", "launch.status", str(finished)], capture_output=True, text=True, env=environment()
    )
    assert word.stdout.strip() == "completed"


def test_completed_run_is_not_trained_again(finished: Path, digits: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    done = subspace("train", FIXED, f"data.shards={digits}", "--run-dir", finished, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "complete already" in done.stdout
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_under_somebody_elses_torchrun_with_ray(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = standalone(2, run, GROWTH, f"data.shards={digits}")
    assert done.returncode == 0, done.stderr
    assert status(run)["state"] == "completed"
    assert status(run)["world_size"] == 2
    assert len(events(run, "growth")) == 1
    assert (run / "report.html").exists()
    assert_nothing_left()


def test_torchrun_is_told_by_every_rank_that_a_folder_is_refused(finished: Path, digits: Path) -> None:
    before = (finished / "status.json").read_bytes()
    done = standalone(2, finished, FIXED, f"data.shards={digits}")
    assert done.returncode == 1  # torchrun knows no other failure
    assert done.stderr.count("is already used: choose another --run-dir") == 2  # once per attempt, by rank 0 alone
    assert "launch/train.py" not in done.stderr  # a stack trace of ours would name it
    assert (finished / "status.json").read_bytes() == before


def test_what_failed_for_good_is_tried_again_by_the_next_agent_only(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for attempt in (1, 2):
        words = (FIXED, f"data.shards={digits}", *EXPLODES, "--resume", "auto")
        done = standalone(2, run, *words)
        assert status(run)["state"] == "failed", done.stderr
        assert (status(run)["exit_code"], status(run)["attempt"]) == (4, attempt)


def ray_servers() -> set[int]:
    names = ("raylet", "gcs_server")
    return {p.pid for p in psutil.process_iter(["name"]) if (p.info["name"] or "").startswith(names)}


SOMEBODYS_RAY = """
import sys, tempfile, ray
with tempfile.TemporaryDirectory(prefix="ray") as folder:
    ray.init(num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, _temp_dir=folder)
    print("address", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.readline()
    ray.shutdown()
"""


def test_joins_the_ray_it_is_told_and_leaves_it_running(digits: Path, tmp_path: Path) -> None:
    run, token = tmp_path / "run", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    theirs = subprocess.Popen(
        [sys.executable, "-c", SOMEBODYS_RAY],
        env={**environment(), **token},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert theirs.stdout is not None
    try:
        address = next(line.split()[1] for line in theirs.stdout if line.startswith("address"))
        before = ray_servers()
        words = ("train", GROWTH, f"data.shards={digits}", "--run-dir", run, f"ray.address={address}")
        done = subspace(*words, variables=token)
        assert done.returncode == 0, done.stderr
        assert len(events(run, "recluster")) == 1
        assert theirs.poll() is None
        assert ray_servers() == before  # no Ray of our own, and theirs is still there
        assert token["RAY_AUTH_TOKEN"] not in "".join(path.read_text() for path in run.glob("*.*") if path.is_file())
    finally:
        theirs.communicate("done\n", timeout=60)


# Ray sets a SIGTERM handler of its own.
@pytest.mark.parametrize(("backend", "number"), [("local", signal.SIGINT), ("ray", signal.SIGTERM)])
def test_signal_saves_and_the_run_goes_on(digits: Path, tmp_path: Path, backend: str, number: signal.Signals) -> None:
    run = tmp_path / "run"
    words: list[str | Path] = ["train", FIXED, f"data.shards={digits}", "--run-dir", run, "train.epochs=40"]
    words += [f"cluster.backend={backend}", "launch.nproc=1"]

    def ask(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) >= 3, "the first steps")
        process.send_signal(number)

    assert disturbed(words, ask) == 75
    assert status(run)["state"] == "preempted"
    stopped_at = status(run)["step"]
    done = subspace(*words, "--resume", "must", "--stop-after-step", str(stopped_at + 2))
    assert done.returncode == 75, done.stderr
    assert [line["step"] for line in steps(run)] == list(range(1, stopped_at + 3))


def test_numbers_that_are_not_finite_stop_the_run_with_code_4(digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subspace("train", FIXED, f"data.shards={digits}", "--run-dir", run, *EXPLODES)
    assert done.returncode == 4, done.stderr
    assert status(run)["exit_code"] == 4
    assert "not finite at step" in status(run)["reason"]
    assert len(events(run, "failed")) == 1
    assert "Traceback" not in done.stderr
