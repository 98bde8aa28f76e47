"""Preemption: signals to agent and ranks, in bad moments, with too little time, again and again."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.agents import agent_environment
from tests.faults.conftest import Recorder
from tests.faults.whole import (
    CONFIG,
    EVERY,
    LOCAL,
    Fault,
    broken,
    fired,
    local,
    ranks,
    reached,
    same,
    variables,
)
from tests.runs import ROOT, command, disturbed, environment, events, status, subspace, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]
LONG = ("train.steps_per_epoch=40",)  # so that signals find it running


def resumed(words: list[str | Path], run: Path, undisturbed: Path) -> bool:
    done = subspace(*words, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    return same(run, undisturbed)


@pytest.fixture(scope="module")
def long_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("long") / "run"
    done = subspace(*local(digits, run, *LONG))
    assert done.returncode == 0, done.stderr
    return run


SIGNALS = {
    "SIGTERM to the agent": lambda agent, ranks: agent.terminate(),
    "SIGUSR1 to the agent": lambda agent, ranks: agent.send_signal(signal.SIGUSR1),
    "SIGUSR2 to the agent": lambda agent, ranks: agent.send_signal(signal.SIGUSR2),
    "SIGTERM to rank 1": lambda agent, ranks: ranks[1].terminate(),
    "SIGUSR1 to rank 0": lambda agent, ranks: ranks[0].send_signal(signal.SIGUSR1),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_f6_signal_saves_and_stops_all_ranks(
    name: str, digits: Path, long_run: Path, tmp_path: Path, record: Recorder
) -> None:
    run = tmp_path / "run"
    sent: dict[str, float] = {}

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: reached(run) >= 12, "step 12")
        sent["at"] = time.time()
        SIGNALS[name](process, ranks(process, run))

    assert disturbed(local(digits, run, *LONG), disturb) == 75
    [stop] = events(run, "preempted")
    assert 12 <= stop["step"] < 120
    assert reached(run) == stop["step"]
    saved_s = stop["time"] - sent["at"]
    bitwise = resumed(local(digits, run, *LONG), run, long_run)
    assert events(run, "restart")[0]["step"] == stop["step"]
    record("F6", name, injected_at_step=12, saved_s=saved_s, grace_s=240, steps_lost=0, rc=75, bitwise=bitwise)


def test_f6_second_signal_while_stopping(digits: Path, long_run: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: reached(run) >= 12, "step 12")
        process.terminate()
        time.sleep(0.2)
        process.terminate()

    code = disturbed(local(digits, run, *LONG), disturb)
    bitwise = resumed(local(digits, run, *LONG), run, long_run)
    record("F6", "SIGTERM twice to the agent, 0.2 s apart", rc=code, bitwise=bitwise)
    assert code == 75


def test_f6_signal_during_a_save(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    """Rank 0 gets SIGTERM from within its third save: the save ends, one more is made, all stop."""
    run = tmp_path / "run"
    fault = Fault("TERM", "trainer.checkpoint:sha256_of", rank=0, call=7)
    assert broken(tmp_path, local(digits, run), fault) == 75
    assert fired(tmp_path)["call"] == 7
    [stop] = events(run, "preempted")
    bitwise = resumed(local(digits, run), run, undisturbed)
    record("F6", "SIGTERM during a save", injected_at_step=stop["step"], steps_lost=0, rc=75, bitwise=bitwise)


def test_f7_grace_shorter_than_a_save(digits: Path, long_run: Path, tmp_path: Path, record: Recorder) -> None:
    """torchrun kills the ranks one second after SIGTERM, and saving takes three: the one before is what counts."""
    run = tmp_path / "run"
    words = [CONFIG, f"data.shards={digits}", "deterministic=true", *LOCAL, *LONG, "--resume", "auto"]
    slow = Fault("sleep", "trainer.checkpoint:CheckpointStore.save", rank=0, call=3, seconds=3.0, once=False)
    options = ["--standalone", "--nproc-per-node", "2", "--log-dir", f"{run}-agents", "--shutdown-timeout", "1"]
    train = ["-m", "launch", "train", *map(str, words), "--run-dir", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *train],
        env={**agent_environment(), **variables(tmp_path, slow)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: reached(run) >= EVERY + 2, "steps after the second checkpoint")
        step = reached(run)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert events(run, "preempted") == [], said
    bitwise = resumed(local(digits, run, *LONG), run, long_run)
    restart = events(run, "restart")[0]
    record(
        "F7",
        "grace of 1 s, a save takes 3 s",
        injected_at_step=step,
        steps_lost=step - restart["step"],
        rc=process.returncode,
        bitwise=bitwise,
    )
    assert 0 <= step - restart["step"] <= EVERY


def test_f8_five_preemptions(digits: Path, long_run: Path, tmp_path: Path, record: Recorder) -> None:
    """What Slurm does: SIGCONT and SIGTERM (or the site's signal), a grace time, SIGKILL, the same command again."""
    run, draw, grace_s = tmp_path / "run", random.Random(0), 60.0
    words = local(digits, run, *LONG, "--resume", "auto")
    saved_s = []
    for number in range(5):
        process = subprocess.Popen(command(*words), env=environment(), stdin=subprocess.DEVNULL)
        try:
            goal = (number + 1) * 16 + draw.randrange(6)
            wait_until(lambda goal=goal: reached(run) >= goal, f"step {goal}")
            began = time.monotonic()
            process.send_signal(signal.SIGCONT)
            process.send_signal(draw.choice([signal.SIGTERM, signal.SIGUSR1]))
            assert process.wait(grace_s) == 75
            saved_s.append(time.monotonic() - began)
        finally:
            process.kill()
        assert status(run)["state"] == "preempted"
    bitwise = resumed(local(digits, run, *LONG), run, long_run)
    stops, goings_on = events(run, "preempted"), events(run, "restart")
    assert len(stops) == 5
    lost = [stop["step"] - going_on["step"] for stop, going_on in zip(stops, goings_on, strict=True)]
    assert lost == [0] * 5
    record(
        "F8",
        "five preemptions, each followed by a requeue",
        steps_lost=0,
        restarts=5,
        saved_s=max(saved_s),
        grace_s=grace_s,
        bitwise=bitwise,
    )
