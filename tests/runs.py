"""Whole runs by the real command line, in processes of their own, and the ways to disturb them."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
# Runs get a temporary folder of this session's, short because sockets lie below it; it also marks their processes.
_OWN = {"TMPDIR": tempfile.mkdtemp(prefix="s", dir="/tmp")}
atexit.register(shutil.rmtree, _OWN["TMPDIR"], ignore_errors=True)


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "launch", *map(str, words)]


def environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SUBSPACE_", "TORCHELASTIC"))}
    return {**own, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT), **_OWN}


def subspace(
    *words: str | Path, timeout_s: float = 240, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with more environment variables if given."""
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**environment(), **(variables or {})},
        stdin=subprocess.DEVNULL,
    )


def disturbed(
    words: list[str | Path],
    disturb: Callable[[psutil.Process], None],
    timeout_s: float = 240,
    variables: dict[str, str] | None = None,
) -> int:
    """Run a command, let `disturb` do its worst with the process, return the exit code."""
    process = subprocess.Popen(
        command(*words), env={**environment(), **(variables or {})}, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        disturb(psutil.Process(process.pid))
        return process.wait(timeout_s)
    finally:
        for child in (
            [*_children(psutil.Process(process.pid)), psutil.Process(process.pid)] if process.poll() is None else []
        ):
            child.kill()


def _children(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def find(process: psutil.Process, *words: str) -> list[psutil.Process]:
    """Return the descendants whose command line has all words."""
    found = []
    for child in _children(process):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words):
            found.append(child)
    return found


def kill(process: psutil.Process, *words: str) -> int:
    """SIGKILL the first descendant whose command line has all words; return its id."""
    victims = find(process, *words)
    assert victims, f"nothing runs with {words}"
    victims[0].send_signal(signal.SIGKILL)
    return victims[0].pid


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file that may still be written."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]


def steps(run: Path) -> list[dict[str, Any]]:
    """Return the step lines of metrics.jsonl."""
    return [line for line in lines(run / "metrics.jsonl") if "loss" in line]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """Return the events of one name."""
    return [line for line in lines(run / "events.jsonl") if line["event"] == name]


def content_hash(run: Path) -> str:
    """Return what `subspace checkpoint hash` prints."""
    done = subspace("checkpoint", "hash", run)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def status(run: Path) -> dict[str, Any]:
    """Return status.json."""
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def processes_left() -> set[str]:
    """Return the processes that runs of this test session have left."""
    found = set()
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if process.environ().get("TMPDIR") == _OWN["TMPDIR"]:
                found.add(f"{process.info['pid']} {' '.join(process.info['cmdline'] or [])[:120]}")
        except psutil.Error:
            continue
    return found


def files_left() -> set[str]:
    """Return the temporary files that runs of this test session have left, but for torch's cache for the user."""
    return {str(path) for path in Path(_OWN["TMPDIR"]).iterdir() if "inductor" not in path.name}


def assert_nothing_left() -> None:
    """Wait a little for processes that are about to end, then see that nothing of this session's runs is there."""
    wait_until(lambda: not processes_left(), f"the end of {sorted(processes_left())}", timeout_s=30)
    assert not files_left()
