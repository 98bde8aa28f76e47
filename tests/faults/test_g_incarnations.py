"""Two incarnations of one run: one writes, the other is told so."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.errors import RunTaken
from launch import history
from launch.ledger import Ledger
from tests.faults.conftest import Recorder
from tests.faults.whole import Fault, local, variables
from tests.runs import content_hash, disturbed, environment, lines, status, steps, subspace, wait_until

long = pytest.mark.matrix
SLOW = Fault("sleep", rank=0, seconds=0.3, once=False)


def commits(run: Path) -> list[int]:
    """Return the attempt of every commit."""
    return [event["attempt"] for event in Ledger(run).events() if event["kind"] == "commit"]


@pytest.mark.parametrize("launcher", [pytest.param("subspace"), pytest.param("torchrun", marks=long)])
def test_g1_the_same_run_started_twice(digits: Path, tmp_path: Path, record: Recorder, launcher: str) -> None:
    run = tmp_path / "run"
    words = local(digits, run, "launch.nproc=1", "--resume", "auto")
    seconds: list[float] = []

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) >= 3, "some steps")
        config, began = (run / "config.yaml").stat().st_mtime_ns, time.monotonic()
        if launcher == "subspace":
            second = subspace(*words)
            assert second.returncode == 6, second.stderr
            assert "is being trained by process" in second.stderr
        else:
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--log-dir", tmp_path]
            second = subprocess.run(
                [sys.executable, *command, "-m", "launch", *map(str, words)],
                env=environment(),
                capture_output=True,
                text=True,
            )
            assert second.returncode == 1  # torchrun has one code for all
            assert "is being trained by process" in second.stderr
        seconds.append(time.monotonic() - began)
        assert (run / "config.yaml").stat().st_mtime_ns == config
        assert process.is_running()

    assert disturbed(words, disturb, variables=variables(tmp_path, SLOW)) == 0
    assert set(commits(run)) == {1}
    assert status(run)["state"] == "completed"
    record("G1", f"the same run started twice, the second by {launcher}", rc=6, detected_s=round(seconds[0], 1),
           double_commits=0)  # fmt: skip


@pytest.mark.matrix
def test_g2_g3_a_paused_run_is_replaced_and_cannot_write_any_more(
    digits: Path, tmp_path: Path, record: Recorder
) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    words = local(digits, run, "--nproc", "1", "--resume", "auto")
    assert subspace(*local(digits, alone, "--nproc", "1")).returncode == 0
    taken_s: list[float] = []

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) >= 7, "some steps")
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.suspend()
        began = time.monotonic()
        second = subspace(*words)
        taken_s.append(time.monotonic() - began)
        assert second.returncode == 0, second.stderr
        for member in reversed(family):
            member.resume()

    assert disturbed(words, disturb, variables=variables(tmp_path, SLOW)) == 6
    made = commits(run)
    assert made == sorted(made), "a commit of attempt 1 after one of attempt 2"
    assert set(made) == {1, 2}
    assert content_hash(run) == content_hash(alone)
    assert (status(run)["state"], status(run)["attempt"]) == ("completed", 2)
    text = (run / "train.log").read_text()
    assert "replaced by attempt 2" in text or "superseded" in text
    for name in ("G2", "G3"):
        record(name, "a run stopped past its lease, replaced, continued", rc=6, stale_commits=0, bitwise=True,
               recovered_s=round(taken_s[0], 1))  # fmt: skip


def test_g4_the_lease_on_other_filesystems(tmp_path: Path, record: Recorder) -> None:
    """Locks and renames are looked at where they are used; a filesystem in memory and the one of the tests both do."""
    places = {"tests": tmp_path, "memory": Path("/dev/shm")}
    for name, place in places.items():
        run = place / f"subspace-lease-{time.time_ns()}"
        run.mkdir()
        try:
            first = Ledger(run).begin("a", 1, 3)
            code = (
                "import sys; from pathlib import Path; from launch.ledger import Ledger;"
                "Ledger(Path(sys.argv[1])).begin('b', 1, 3)"
            )
            second = subprocess.run(
                [sys.executable, "-c", code, run], env=environment(), capture_output=True, text=True
            )
            assert RunTaken.__name__ in second.stderr, name
            first.close()
        finally:
            for path in run.iterdir():
                path.unlink()
            run.rmdir()
    record("G4", f"lease on the filesystems of {', '.join(places)}; network filesystems not at hand", double_leases=0)


def test_g3_begin_is_raced_for_by_many(tmp_path: Path, record: Recorder) -> None:
    """Twelve launches at once find a dead holder: one gets the lease."""
    run = tmp_path / "run"
    run.mkdir()
    code = (
        "import sys, time; from pathlib import Path; from launch.ledger import Ledger\n"
        "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.001)\n"
        "Ledger(Path(sys.argv[1])).begin(sys.argv[2], 1, 3); print('mine', flush=True); time.sleep(60)"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, run, str(n)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for n in range(12)
    ]
    try:
        time.sleep(2)
        (run / "go").touch()
        wait_until(lambda: sum(racer.poll() is None for racer in racers) <= 1, "eleven that stand back")
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    made = history.attempts(Ledger(run).events())
    assert len(made) == 1
    assert lines(run / "events.jsonl") == []
    record("G3", "twelve launches at once", double_leases=0)
