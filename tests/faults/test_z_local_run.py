"""A run of `subspace train` with a Ray of its own: who can reach it, what its token touches, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import (
    ROOT,
    command,
    content_hash,
    environment,
    files_left,
    find,
    processes_left,
    steps,
    subspace,
    wait_until,
)

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]
CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
GONE_S = 10.0  # the promise
GCS_BOUND_S = 120.0  # Ray ends a driver that has lost its GCS for 60 s


def words(digits: Path, run: Path) -> list[str | Path]:
    return ["train", CONFIG, f"data.shards={digits}", "--deterministic", "--run-dir", run, "--resume", "auto"]


def started(digits: Path, run: Path, at_step: int = 4) -> psutil.Popen:
    """Return a run that has made a few steps."""
    process = psutil.Popen(
        command(*words(digits, run)),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: len(steps(run)) >= at_step or process.poll() is not None, "the first steps", 300)
    assert process.poll() is None
    return process


def went_on(digits: Path, run: Path) -> str:
    """Start the run again, see it complete, return the hash of its content."""
    done = subspace(*words(digits, run), timeout_s=400)
    assert done.returncode == 0, done.stderr
    return content_hash(run)


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory, record: Any) -> str:
    """Return the hash of an undisturbed run, at which somebody looked while it worked."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = started(digits, run)
    open_to_all, token = listeners(process), (run / ".ray_token").read_text()
    record_listeners(record, open_to_all)
    mode = stat.S_IMODE((run / ".ray_token").stat().st_mode)
    assert mode == 0o600
    lines = [" ".join(p.cmdline()) for p in [process, *process.children(recursive=True)] if p.is_running()]
    logs = [path for folder in (run, Path(environment()["TMPDIR"])) for path in folder.rglob("*") if path.is_file()]
    assert len(lines) > 8 and any("gcs_server" in str(path) for path in logs)
    assert process.wait(400) == 0
    found = [line for line in lines if token in line]
    found += [str(path) for path in {*logs, *run.rglob("*")} if path.is_file() and token.encode() in path.read_bytes()]
    assert found == []
    assert not (run / ".ray_token").exists()
    record("S4", "the token of a local run in files, logs, arguments", mode=oct(mode), files=len(logs), found=0)
    return content_hash(run)


def listeners(process: psutil.Process) -> list[tuple[str, str]]:
    """Return (process, address) of everything that a run listens at."""
    found = []
    for member in [process, *process.children(recursive=True)]:
        try:
            name = " ".join(member.cmdline())
            found += [(name, c.laddr.ip) for c in member.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        except psutil.Error:
            continue
    return found


def record_listeners(record: Any, found: list[tuple[str, str]]) -> None:
    """Ray's are all on loopback; torch's store listens everywhere, and cannot be told otherwise."""
    away = [(name, ip) for name, ip in found if not ip.removeprefix("::ffff:").startswith("127.") and ip != "::1"]
    of_ray = [(name, ip) for name, ip in away if "launch" not in name]
    assert len(found) > 8
    assert of_ray == []
    record("S5", "listening sockets of a local run with two ranks", listeners=len(found), ray_off_loopback=0,
           torch_store_off_loopback=len(away))  # fmt: skip


def test_s5_s4_listeners_and_token(undisturbed: str) -> None:
    assert undisturbed


def test_z1_k9_killed_launcher_leaves_nothing(record: Any, digits: Path, undisturbed: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(digits, run, at_step=12)
    assert len(find(process, "ray::")) >= 3 and files_left()
    shared = set(os.listdir("/dev/shm"))
    began = time.monotonic()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not processes_left() and not files_left(), "the end of everything", 3 * GONE_S)
    gone_s = time.monotonic() - began
    assert gone_s < GONE_S
    assert set(os.listdir("/dev/shm")) <= shared
    record("Z1", "kill -9 of subspace train with its own Ray", recovered_s=gone_s, leaks=0)
    assert went_on(digits, run) == undisturbed
    record("K9", "kill -9 of the launcher with its actors, started again", leaks=0, bitwise=True)


def test_k5_gcs_killed(record: Any, digits: Path, undisturbed: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(digits, run, at_step=6)
    [gcs] = find(process, "gcs_server")
    gcs.kill()
    began = time.monotonic()
    code = process.wait(3 * GCS_BOUND_S)
    ended_s, reached = time.monotonic() - began, len(steps(run))
    wait_until(lambda: not processes_left() and not files_left(), "the end of everything", 3 * GONE_S)
    assert ended_s < GCS_BOUND_S
    assert went_on(digits, run) == undisturbed
    record("K5", "GCS killed, no Redis; the run is started again", rc=code, recovered_s=ended_s, bitwise=True,
           last_step=reached)  # fmt: skip
