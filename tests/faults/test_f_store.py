"""Restarts after a kill, with one rendezvous store for all of them (torch's default) and with one for each (ours)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agents import agent_environment
from tests.faults.conftest import Recorder
from tests.faults.whole import local, ranks, reached
from tests.runs import ROOT, disturbed, wait_until

pytestmark = pytest.mark.timeout(1800)
TRIALS = 8
DEFAULT_TRIALS = 4  # they may take a minute each
OWN = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def worker() -> None:
    """Add up over two ranks for a while; rank 1 of the first attempt is killed."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    attempts = Path(sys.argv[1]) / f"attempts-{dist.get_rank()}"
    with attempts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    for step in range(40):
        if step == 20 and dist.get_rank() == 1 and len(attempts.read_text().split()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1000))
    dist.barrier()
    dist.destroy_process_group()


def restarts(folder: Path, own_store: bool, timeout_s: float) -> int | None:
    """Return how many restarts one kill took; None when it was not over in time, or the budget was used up."""
    folder.mkdir()
    environment = {**agent_environment(), OWN: "1" if own_store else "0", "GLOO_SOCKET_IFNAME": "lo"}
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "8", "--monitor-interval", "0.1"]
    script = [str(Path(__file__).parent / "store_worker.py"), str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "--log-dir", str(folder / "logs"), *script],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.terminate()
        process.wait(60)
    attempts = [len((folder / f"attempts-{rank}").read_text().split()) for rank in (0, 1)]
    assert attempts[1] >= 2, "the kill did not happen"
    return max(attempts) - 1 if code == 0 else None


@pytest.mark.matrix
@pytest.mark.parametrize("trials", [TRIALS])
def test_f10_one_kill_costs_one_restart_with_a_store_for_each(trials: int, tmp_path: Path, record: Recorder) -> None:
    found = [restarts(tmp_path / str(trial), own_store=True, timeout_s=120) for trial in range(trials)]
    assert found == [1] * trials
    record("F10", f"{OWN}=1, as our launchers set it", trials=trials, restarts=1)


@pytest.mark.matrix
def test_f10_distribution_with_the_shared_store(tmp_path: Path, record: Recorder) -> None:
    """Not ours to assert: what torch does by default, for the record."""
    found = [restarts(tmp_path / str(trial), own_store=False, timeout_s=60) for trial in range(DEFAULT_TRIALS)]
    said = ", ".join("not within 60 s" if count is None else str(count) for count in found)
    record("F10", f"{OWN} not set, torch's default", trials=DEFAULT_TRIALS, restarts_per_kill=said)


@pytest.mark.matrix
def test_f10_our_launcher_sets_it(digits: Path, tmp_path: Path, record: Recorder) -> None:
    seen: list[str | None] = []

    def look(process: object) -> None:
        wait_until(lambda: reached(tmp_path / "run") >= 1, "the first step")
        seen.extend(rank.environ().get(OWN) for rank in ranks(process, tmp_path / "run"))  # type: ignore[arg-type]

    assert disturbed(local(digits, tmp_path / "run"), look) == 0
    assert seen == ["1", "1"]
    record("F10", "variable in the environment of our ranks", ranks=2)
