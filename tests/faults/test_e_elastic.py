"""A run goes on with other numbers of ranks, loader workers and actors: at the same sample, to the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Recorder
from tests.faults.test_n_numerics import poison, poisoned
from tests.faults.whole import CONFIG, local, reached, same, train
from tests.runs import content_hash, disturbed, events, status, steps, subspace, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1200)]
LONG = ("train.steps_per_epoch=30",)  # so that signals find it running
PIECES = ("train.logical_shards=6", "train.batch_size=48", "train.steps_per_epoch=6", "train.epochs=2")


def test_e1_two_ranks_then_one_then_three(digits: Path, tmp_path: Path, record: Recorder) -> None:
    """SIGTERM to the launcher of two ranks, SIGKILL of everything with one rank, and the rest with three."""
    run, other = tmp_path / "run", tmp_path / "other"
    done = subspace(*local(digits, other, *LONG), timeout_s=600)
    assert done.returncode == 0, done.stderr

    def preempt(process: psutil.Process) -> None:
        wait_until(lambda: reached(run) >= 12, "step 12")
        process.terminate()

    assert disturbed(local(digits, run, *LONG), preempt) == status(run)["exit_code"] == 75
    stopped_at = status(run)["step"]
    assert 12 <= stopped_at < 60
    killed: list[int] = []

    def lose_power(process: psutil.Process) -> None:
        wait_until(lambda: reached(run) >= stopped_at + 8, f"step {stopped_at + 8}")
        for victim in [process, *process.children(recursive=True)]:
            victim.kill()
            killed.append(victim.pid)

    assert disturbed(local(digits, run, *LONG, "--resume", "must", "--nproc", "1"), lose_power) == -9
    assert len(killed) >= 2
    killed_at = reached(run)
    done = subspace(*local(digits, run, *LONG, "--resume", "must", "--nproc", "3"), timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert status(run)["world_size"] == 3
    resumed = events(run, "restart")
    assert [event["world_size"] for event in resumed] == [1, 3]
    assert resumed[0]["step"] == stopped_at, "a preemption costs no step"
    record(
        "E1",
        "2 ranks, SIGTERM, 1 rank, SIGKILL of all, 3 ranks",
        injected_at_step=[stopped_at, killed_at],
        steps_lost=killed_at - resumed[1]["step"],
        bitwise=same(run, other),
        hash=content_hash(run)[:12],
    )


def seen(folder: Path, step: int) -> list[int]:
    """Return the samples of a step, rank by rank."""
    files = sorted(folder.glob(f"samples-fired-{step}-*"), key=lambda path: int(path.name.split("-")[-1]))
    return [sample for path in files for sample in json.loads(path.read_text())]


def test_e2_every_number_of_ranks_from_one_checkpoint(digits: Path, tmp_path: Path, record: Recorder) -> None:
    start = tmp_path / "start"
    first = (f"data.shards={digits}", "--deterministic", "cluster.backend=local", "evaluate.nmi_seeds=1", *PIECES)
    done = subspace("train", CONFIG, *first, "--run-dir", start, "--nproc", "2", "--stop-after-step", "5")
    assert done.returncode == 75, done.stderr
    hashes, samples = {}, {}
    for num_ranks in (1, 2, 3, 4, 6):
        folder = tmp_path / f"{num_ranks}"
        folder.mkdir()
        run = folder / "run"
        shutil.copytree(start, run)
        telling = [poison(folder, "samples", None, 1, last=1000)]
        words = ("train.on_nonfinite=stop", *PIECES, "--resume", "must")
        code, said = poisoned(digits, run, telling, *words, nproc=num_ranks)
        assert code == 0, said
        assert status(run)["world_size"] == num_ranks
        hashes[num_ranks] = content_hash(run)
        samples[num_ranks] = [seen(folder, step) for step in range(6, 13)]
        assert not seen(folder, 5)
        assert all(len(step) == 48 for step in samples[num_ranks])
    assert set(hashes.values()) == {hashes[1]}
    assert all(found == samples[1] for found in samples.values())
    record(
        "E2",
        "1, 2, 3, 4, 6 ranks from one checkpoint, six logical pieces",
        bitwise=True,
        hashes=len(set(hashes.values())),
        duplicate_samples=0,
        missing_samples=0,
    )


def test_e3_other_workers_and_actors_at_resume(
    digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder
) -> None:
    run = tmp_path / "run"
    words = ("evaluate.nmi_seeds=1",)
    done = subspace(*train(digits, run, *words, "cluster.num_shards=1", "--stop-after-step", "7"), timeout_s=600)
    assert done.returncode == 75, done.stderr
    other = ("data.num_workers=2", "cluster.num_shards=3", "--resume", "must")
    done = subspace(*train(digits, run, *words, *other), timeout_s=600)
    assert done.returncode == 0, done.stderr
    assert len(events(run, "recluster")) == 1
    record("E3", "2 loader workers instead of none, 3 actors instead of 1", bitwise=same(run, undisturbed))


def test_e4_deepspeed_at_another_number_of_ranks(digits: Path, tmp_path: Path, record: Recorder) -> None:
    """Parts of ZeRO are whole in our checkpoints, so there is nothing to refuse."""
    pytest.importorskip("deepspeed")
    run, other = tmp_path / "run", tmp_path / "other"
    base = (f"data.shards={digits}", "cluster.backend=local", "evaluate.nmi_seeds=1", "optim.lr=3e-4")
    zero = ("train.engine.name=deepspeed", "train.engine.zero_stage=2")
    for folder, nproc, resume, stop in ((run, 2, "never", 5), (run, 1, "must", 12), (other, 2, "never", 12)):
        words = ("--run-dir", folder, "--nproc", str(nproc), "--resume", resume, "--stop-after-step", str(stop))
        done = subspace("train", CONFIG, *base, *zero, *words, timeout_s=600)
        assert done.returncode == 75, done.stderr
    mine, theirs = ([line["loss"] for line in steps(folder)] for folder in (run, other))
    assert len(mine) == len(theirs) == 12
    assert mine == pytest.approx(theirs, rel=1e-3)
    worst = max(abs(a - b) / b for a, b in zip(mine, theirs, strict=True))
    record("E4", "ZeRO-2 of 2 ranks goes on with 1", rc=75, bitwise=False, greatest_relative_difference_of_losses=worst)
