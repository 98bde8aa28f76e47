"""Killed processes of a run: it goes on by itself and ends with the bytes of the undisturbed run."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Recorder
from tests.faults.whole import (
    COMMIT,
    EVERY,
    GROW,
    JOIN,
    RECLUSTER,
    RESUME,
    STEP,
    Fault,
    Kill,
    broken,
    fired,
    kill_random_rank,
    local,
    restarts,
    same,
    train,
)
from tests.runs import disturbed, events, find, kill, lines, status, steps, subspace, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEEDS = range(10)
LONG = ("train.steps_per_epoch=30",)  # so that two kills find it running


@pytest.mark.matrix
def test_f1_one_killed_rank_with_ray(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    draw, kills = random.Random(0), []

    def disturb(process: psutil.Process) -> None:
        kills.append(kill_random_rank(process, run, 12, draw))

    assert disturbed(train(digits, run), disturb) == 0
    assert restarts(run) == 1
    bitwise = same(run, undisturbed)
    [cost] = kills
    assert cost.steps_lost <= 8, "an epoch is the interval here"
    record(
        "F1",
        "SIGKILL of one rank in mid-epoch, with Ray",
        injected_at_step=cost.step,
        recovered_s=cost.recovered_s,
        steps_lost=cost.steps_lost,
        restarts=1,
        bitwise=bitwise,
    )


@pytest.fixture(scope="module")
def long_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("long") / "run"
    done = subspace(*local(digits, run, *LONG))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.matrix
@pytest.mark.parametrize("seed", SEEDS)
def test_f1_random_rank_killed_twice(seed: int, digits: Path, long_run: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    draw = random.Random(seed)
    kills: list[Kill] = []

    def disturb(process: psutil.Process) -> None:
        for at_step in (draw.randrange(3, 35), draw.randrange(40, 80)):
            kills.append(kill_random_rank(process, run, at_step, draw))

    assert disturbed(local(digits, run, *LONG), disturb) == 0
    assert restarts(run) == len(kills) == 2
    bitwise = same(run, long_run)
    lost = [cost.steps_lost for cost in kills]
    assert max(lost) <= EVERY
    record(
        "F1",
        "SIGKILL of a random rank, twice in a run",
        seed=seed,
        injected_at_step=kills[0].step,
        recovered_s=max(cost.recovered_s for cost in kills),
        steps_lost=max(lost),
        restarts=2,
        bitwise=bitwise,
    )


PHASES = {
    "joining the process group": Fault("KILL", JOIN),
    "writing a checkpoint": Fault("KILL", COMMIT, rank=0, call=3),
    "k-means": Fault("KILL", RECLUSTER),
    "growth": Fault("KILL", GROW),
    "growth, rank 0": Fault("KILL", GROW, rank=0),
}


@pytest.mark.matrix
@pytest.mark.parametrize("phase", PHASES)
def test_f3_killed_in_a_phase(phase: str, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    assert broken(tmp_path, local(digits, run), PHASES[phase]) == 0
    assert fired(tmp_path)["call"] == PHASES[phase].call
    record("F3", f"SIGKILL while {phase}", restarts=restarts(run), bitwise=same(run, undisturbed))


@pytest.mark.matrix
def test_f3_killed_while_resuming(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    """The second fault fires in the second attempt: reading the checkpoint to go on from."""
    run = tmp_path / "run"
    faults = Fault("KILL", STEP, call=12), Fault("KILL", RESUME, rank=0, call=1)
    env_marker = tmp_path / "fired-1"
    env_marker.touch()  # not in the first attempt

    def watch(process: psutil.Process) -> None:
        wait_until(lambda: (tmp_path / "fired-0").exists(), "the first kill")
        env_marker.unlink()

    assert broken(tmp_path, local(digits, run), *faults, watch=watch) == 0
    assert fired(tmp_path, 1)["pid"] != fired(tmp_path, 0)["pid"]
    record("F3", "SIGKILL while resuming after a SIGKILL", restarts=restarts(run), bitwise=same(run, undisturbed))


def test_k1_killed_controller_and_kmeans_actors(
    digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder
) -> None:
    run = tmp_path / "run"

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) >= 4, "the first epoch")
        before = {child.pid for child in find(process, "ray::")}
        names = ("ControllerActor", "ShardActor", "CoordinatorActor")
        victims = {kill(process, f"ray::{name}") for name in names}
        assert len(victims) == 3
        assert victims <= before

    assert disturbed(train(digits, run), disturb) == 0
    assert restarts(run) == 0
    record("K1", "controller, coordinator and a shard killed in a run", restarts=0, bitwise=same(run, undisturbed))


def test_b1_stop_and_resume_after_the_split(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    """Conformance check 9: blocks, K, labels and the loss curve are those of the undisturbed run."""
    run = tmp_path / "run"
    stopped = subspace(*train(digits, run, "--stop-after-step", "20"))
    assert stopped.returncode == 75, stopped.stderr
    found = status(run)
    assert [found[name] for name in ("state", "step", "num_subspaces", "exit_code")] == ["preempted", 20, 2, 75]
    assert subspace(*train(digits, run)).returncode == 2  # a used folder is not taken without --resume
    done = subspace(*train(digits, run, "--resume", "auto"))
    assert done.returncode == 0, done.stderr
    bitwise = same(run, undisturbed)
    told = [e["event"] for e in lines(run / "events.jsonl") if e["event"] in ("preempted", "restart", "completed")]
    assert told == ["preempted", "restart", "completed"]
    assert len(events(run, "growth")) == 1
    record("B1", "stopped and gone on with after the growth", steps_lost=0, bitwise=bitwise)
