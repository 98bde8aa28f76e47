"""The agent dies: its ranks go with it, nothing is left, and the run is there to be gone on with."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.agents import Machine, agent, free_port
from tests.faults.conftest import Recorder
from tests.faults.whole import CONFIG, LOCAL, local, reached, same, train
from tests.runs import disturbed, events, files_left, find, status, subspace, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]
ORPHANS_MAY_LIVE_S = 5.0


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_f4_killed_agent(backend: str, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    words = local(digits, run) if backend == "local" else train(digits, run)
    orphans: list[psutil.Process] = []
    ended: dict[str, float] = {}

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: reached(run) >= 6, "the first epoch")
        orphans.extend(process.children(recursive=True))
        assert len(find(process, "launch", "rank", str(run))) == 2
        at = time.monotonic()
        process.kill()
        own = [p for p in orphans if p.is_running() and "RANK" in _environment(p)]
        wait_until(lambda: not alive(own), "the end of the ranks", timeout_s=30)
        ended["s"] = time.monotonic() - at
        wait_until(lambda: not alive(orphans), "the end of everything", timeout_s=30)

    assert disturbed(words, disturb) == -signal.SIGKILL
    step = reached(run)
    for folder in files_left():  # a process that is killed does not tidy up
        shutil.rmtree(folder, ignore_errors=True)
    done = subspace(*words, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    [restart] = events(run, "restart")
    record(
        "F4",
        f"SIGKILL of the agent, {backend} backend",
        injected_at_step=step,
        detected_s=ended["s"],
        orphans_after_5_s=int(ended["s"] > ORPHANS_MAY_LIVE_S),
        steps_lost=max(0, step - restart["step"]),
        bitwise=same(run, undisturbed),
    )


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def lose_power(process: subprocess.Popen[str]) -> None:
    """SIGKILL for an agent and everything below it."""
    parent = psutil.Process(process.pid)
    for victim in [parent, *parent.children(recursive=True)]:
        victim.kill()


@contextmanager
def two_agents(run: Path, nnodes: str, *words: str | Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two agents as on two machines; the first hosts the rendezvous."""
    endpoint = f"127.0.0.1:{free_port()}"
    with ExitStack() as ends:
        agents = [agent(Machine((), f"127.0.0.{i}"), endpoint, nnodes, run, *words) for i in (1, 2)]
        for process in agents:
            ends.callback(process.kill)
        yield agents


def test_f5_lost_group_that_is_not_the_host(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    words = (CONFIG, f"data.shards={digits}", "deterministic=true", *LOCAL, "--resume", "auto")
    with two_agents(run, "1:2", *words) as (host, other):
        wait_until(lambda: reached(run) >= 6, "the first steps")
        assert status(run)["world_size"] == 2
        at, step = time.time(), reached(run)
        lose_power(other)
        out, _ = host.communicate(timeout=240)
        assert host.returncode == 0, out
    restart = events(run, "restart")[-1]
    assert status(run)["world_size"] == 1
    record(
        "F5",
        "one of two agents and its rank killed; the other goes on alone",
        injected_at_step=step,
        recovered_s=restart["time"] - at,
        restarts=len(events(run, "restart")),
        bitwise=same(run, undisturbed),
    )


def test_f5_lost_group_that_hosts_the_rendezvous(
    digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder
) -> None:
    """The store is gone with its machine, so the other agent ends too; what a scheduler starts again goes on."""
    run = tmp_path / "run"
    words = (CONFIG, f"data.shards={digits}", "deterministic=true", *LOCAL, "--resume", "auto")
    with two_agents(run, "1:2", *words) as (host, other):
        wait_until(lambda: reached(run) >= 6, "the first steps")
        assert status(run)["world_size"] == 2
        at, step = time.monotonic(), reached(run)
        lose_power(host)
        out, _ = other.communicate(timeout=240)
        ended_s = time.monotonic() - at
        assert other.returncode not in (0, None), out
    with two_agents(run, "1:2", *words) as agents:
        for process in agents:
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0, out
    record(
        "F5",
        "the agent that hosts the rendezvous killed; both started again",
        injected_at_step=step,
        detected_s=ended_s,
        rc=other.returncode,
        bitwise=same(run, undisturbed),
    )
