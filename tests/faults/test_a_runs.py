"""Whole runs whose checkpoints cannot be written, are gone, or are damaged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Recorder
from tests.faults.whole import Fault, local, variables
from tests.runs import content_hash, disturbed, events, status, subspace, wait_until


@pytest.fixture
def small_run(tmp_path: Path) -> Iterator[Path]:
    """Return a run folder whose checkpoints are on a disk of 1 MiB."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", run / "checkpoints"]).returncode
    ):
        pytest.skip("mounting a tmpfs needs root")
    yield run
    subprocess.run(["umount", "-l", run / "checkpoints"], check=False)


@pytest.mark.matrix
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a4_a_run_outlives_a_full_disk(
    digits: Path, small_run: Path, tmp_path: Path, record: Recorder, asynchronous: bool
) -> None:
    alone, ballast = tmp_path / "alone", small_run / "checkpoints" / "ballast"
    assert subspace(*local(digits, alone)).returncode == 0

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(events(small_run, "checkpoint")) >= 1, "a checkpoint")
        ballast.write_bytes(b"")
        room = os.statvfs(ballast)
        ballast.write_bytes(bytes(room.f_bavail * room.f_frsize))
        wait_until(lambda: len(events(small_run, "not_saved")) >= 2, "saves that fail")
        ballast.unlink()

    slow = Fault("sleep", rank=0, seconds=0.3, once=False)
    words = local(digits, small_run, f"checkpoint.asynchronous={str(asynchronous).lower()}")
    assert disturbed(words, disturb, variables=variables(tmp_path, slow)) == 0
    assert events(small_run, "restart") == []
    assert "No space left" in events(small_run, "not_saved")[0]["reason"]
    assert content_hash(small_run) == content_hash(alone)
    name = "asynchronous" if asynchronous else "synchronous"
    record("A4", f"disk full for a while under two ranks, {name} saves", bitwise=True, rc=0, restarts=0,
           saves_skipped=len(events(small_run, "not_saved")))  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a3_a_disk_that_stays_full(digits: Path, small_run: Path, record: Recorder, policy: str) -> None:
    """`stop` ends at the first failure; `continue` trains to the end, which it cannot call complete."""

    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(events(small_run, "checkpoint")) >= 1, "a checkpoint")
        ballast = small_run / "checkpoints" / "ballast"
        ballast.write_bytes(b"")
        room = os.statvfs(ballast)
        ballast.write_bytes(bytes(room.f_bavail * room.f_frsize))

    assert disturbed(local(digits, small_run, f"checkpoint.on_error={policy}"), disturb) == 70
    assert status(small_run)["state"] == "failed"
    assert "No space left" in status(small_run)["reason"]
    assert not [path for path in (small_run / "checkpoints").iterdir() if path.name.endswith(".tmp")]
    record("A3", f"disk full for good, checkpoint.on_error={policy}", rc=70, bytes_left_over=0)


def test_a7_a10_nothing_to_go_on_from_is_never_step_0(digits: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    words = local(digits, run, "--nproc", "1", "--resume", "auto")
    assert subspace(*words, "--stop-after-step", "6").returncode == 75
    folder = run / "checkpoints"
    for path in folder.glob("step-*/tensors.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    damaged = subspace(*words)
    assert damaged.returncode == 3, damaged.stderr
    assert "every checkpoint" in damaged.stderr
    assert "Traceback" not in damaged.stderr
    folder.rename(run / "away")  # as a mount that has vanished
    gone = subspace(*words)
    assert gone.returncode == 3, gone.stderr
    assert "step 6 was saved there" in gone.stderr
    record("A7", "one bit flipped in every checkpoint", rc=3, started_at_step_0=False)
    record("A10", "the folder of checkpoints has vanished", rc=3, started_at_step_0=False)
