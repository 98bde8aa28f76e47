"""Every way for a rank to die or hang: found, named, and the run goes on to the same bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Recorder
from tests.faults.whole import Fault, broken, fired, local, restarts, same
from tests.runs import status, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]
TIMEOUT_S = 12.0
AGENT_PATIENCE_S = 30.0  # torch's, for a process that does not answer SIGTERM
WORDS = (f"launch.timeout_s={TIMEOUT_S}", f"cluster.timeout_s={TIMEOUT_S}")
DIES = ("KILL", "SEGV", "ABRT", "exit", "exception", "memory")
HANGS = ("STOP", "gil", "sleep")


def stacks(run: Path, attempt: int = 1) -> dict[int, str]:
    """Return the text that each rank's watchdog left in an attempt."""
    found = (run / "logs").glob(f"stacks-rank-*-attempt-{attempt}.txt")
    return {int(path.name.split("-")[2]): path.read_text(errors="replace") for path in found}


def gone(pid: int) -> bool:
    """Return whether a process has ended."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("kind", [*DIES, *HANGS])
def test_f2_crash_class(kind: str, digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    ended: dict[str, float] = {}

    def watch(process: psutil.Process) -> None:
        wait_until(lambda: (tmp_path / "fired-0").exists(), "the fault")
        wait_until(lambda: len(list((run / "logs").glob("stacks-*-attempt-2.txt"))) > 0, "the next attempt")
        ended["s"] = time.time() - fired(tmp_path)["time"]

    fault = Fault(kind, call=12, seconds=600)
    assert broken(tmp_path, local(digits, run, *WORDS), fault, watch=watch) == 0
    assert fired(tmp_path)["call"] == 12
    survivor = stacks(run)[0]
    assert "lost its peers during" in survivor
    assert 'File "' in survivor
    if kind in HANGS:
        assert ended["s"] >= TIMEOUT_S - 1
    figures = {"restarts": restarts(run), "recovered_s": ended["s"], "bitwise": same(run, undisturbed)}
    assert figures["restarts"] == 1
    record("F2", f"rank 1: {kind}", injected_at_step=12, deadline_s=TIMEOUT_S if kind in HANGS else None, **figures)


@pytest.mark.parametrize("kind", HANGS)
def test_h1_hanging_rank_ends_the_run_with_code_5(kind: str, digits: Path, tmp_path: Path, record: Recorder) -> None:
    """Without restarts: every survivor ends within the deadline and 10 s, and says why."""
    run = tmp_path / "run"
    survivor_s: dict[str, float] = {}

    def watch(process: psutil.Process) -> None:
        wait_until(lambda: (tmp_path / "fired-0").exists(), "the fault")
        [other] = [p for p in process.children(recursive=True) if p.environ().get("RANK") == "0"]
        wait_until(lambda: gone(other.pid), "the end of the survivor")
        survivor_s["s"] = time.time() - fired(tmp_path)["time"]

    fault = Fault(kind, call=12, seconds=600)
    code = broken(tmp_path, local(digits, run, *WORDS, "launch.max_restarts=0"), fault, watch=watch)
    found = status(run)
    assert (code, found["state"], found["exit_code"]) == (5, "failed", 5)
    assert "lost its peers during gather of the vectors" in found["reason"]
    assert "during gather of the vectors" in stacks(run)[0].splitlines()[0]
    overdue_s = survivor_s["s"] - TIMEOUT_S
    record("H1", f"rank 1: {kind}, no restarts", rc=5, detected_s=survivor_s["s"], deadline_s=TIMEOUT_S)
    assert overdue_s < 10 or os.getloadavg()[0] > 4, "a busy machine takes longer to end a process"


def test_h1_mismatched_shape_ends_the_run_with_code_5(digits: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    fault = Fault("shape", "trainer.distributed:gather_rows", call=20)
    code = broken(tmp_path, local(digits, run, *WORDS, "launch.max_restarts=0"), fault)
    fired(tmp_path)
    assert (code, status(run)["exit_code"]) == (5, 5), status(run)
    record("H1", "rank 1 gathers another shape, no restarts", rc=5, deadline_s=TIMEOUT_S)


def test_h1_lonely_rank_that_hangs_is_ended_by_its_timer(digits: Path, tmp_path: Path, record: Recorder) -> None:
    """Nobody misses the only rank: its own timer ends it, though the interpreter's lock is held."""
    run = tmp_path / "run"
    words = local(digits, run, *WORDS, "launch.max_restarts=0", "launch.nproc=1")
    code = broken(tmp_path, words, Fault("gil", rank=0, call=12))
    ended_s = status(run)["time"] - fired(tmp_path)["time"]
    assert (code, status(run)["exit_code"]) == (5, 5)
    assert "rank 0 got nowhere during epoch 1" in status(run)["reason"]
    assert stacks(run)[0].splitlines()[1].startswith("Timeout (")
    record("H1", "the only rank holds the GIL for ever", rc=5, detected_s=ended_s, deadline_s=TIMEOUT_S + 5)
