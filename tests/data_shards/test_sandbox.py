"""Workers that die, hang, eat memory or answer nonsense cost their item only."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_shards.decode import Unreadable
from data_shards.errors import UserError
from data_shards.sandbox import Limits, Reply, Sandbox


def echo(item: int) -> Reply:
    return {"item": item, "pid": os.getpid()}, bytes([item % 256]) * item


def reasons(step, items, limits: Limits | None = None, num_workers: int = 1) -> dict[int, str]:
    """Return why items failed; the others must have been answered as `echo` does."""
    failed = {}
    with Sandbox(step, num_workers, limits) as sandbox:
        for item, found in zip(items, sandbox.run(items), strict=True):
            if isinstance(found, Unreadable):
                failed[item] = str(found)
            else:
                assert (found[0]["item"], found[1]) == (item, echo(item)[1])
    return failed


def spoilt(culprit: int, harm):
    def step(item: int) -> Reply:
        if item == culprit:
            harm()
        return echo(item)

    return step


def answer_nonsense() -> None:
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
                os.write(int(number), b"nonsense" * 4)


def write_a_file() -> None:
    with tempfile.TemporaryFile(buffering=0) as stream:
        stream.write(b"x")


@pytest.mark.parametrize("num_workers", [1, 3])
def test_answers_come_in_order_and_large(num_workers: int) -> None:
    items = [5, 3_000_000, 0, *range(10, 60), 200_000]
    assert reasons(echo, items, num_workers=num_workers) == {}


def test_workers_are_reused_and_end() -> None:
    with Sandbox(echo) as sandbox:
        pids = {found[0]["pid"] for _ in range(3) for found in sandbox.run(range(5))}
        assert list(sandbox.run([])) == []
    assert len(pids) == 1
    assert not psutil.pid_exists(pids.pop())


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), r"died \(SIGSEGV\)"),
        (lambda: ctypes.string_at(0), r"died \(SIGSEGV\)"),
        (lambda: os._exit(3), r"exit code 3"),
        (lambda: time.sleep(60), "more than 1 s"),
        (lambda: exec("while True: pass"), "more than 1 s"),
        (lambda: answer_nonsense(), "died|more than"),
        (lambda: np.ones(1 << 27), "cannot be decoded: .*allocate"),
        (lambda: write_a_file(), "cannot be decoded: .*[Ff]ile too large"),
        (lambda: [os.pipe() for _ in range(100)], "cannot be decoded: .*[Tt]oo many open files"),
        (lambda: 1 / 0, "cannot be decoded: division by zero"),
    ],
)
def test_a_bad_item_costs_itself_only(harm, reason: str) -> None:
    limits = Limits(memory_bytes=256 << 20, seconds=1, num_files=16)
    failed = reasons(spoilt(7, harm), range(40), limits, num_workers=2)
    assert set(failed) == {7}
    assert re.search(reason, failed[7])


def test_a_death_that_was_not_the_items_fault_is_forgiven(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()

    def once() -> None:
        if mark.exists():
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    assert reasons(spoilt(2, once), range(5)) == {}
    assert not mark.exists()


def test_workers_have_nothing_of_the_parent(tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w") as held:

        def step(item: int) -> Reply:
            found = []
            for number in os.listdir("/proc/self/fd"):
                with suppress(OSError):
                    found.append(os.readlink(f"/proc/self/fd/{number}"))
            return {"open": [name for name in found if not name.startswith("pipe:")]}, b""

        with Sandbox(step) as sandbox:
            (found,) = sandbox.run([0])
        assert set(found[0]["open"]) == {"/dev/null"}
        assert not held.closed


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        for found in Sandbox(echo).run([1]):
            (tmp_path / "pid.tmp").write_text(str(found[0]["pid"]))
        (tmp_path / "pid.tmp").rename(tmp_path / "pid")
        time.sleep(60)
        os._exit(0)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    worker = psutil.Process(int((tmp_path / "pid").read_text()))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    psutil.wait_procs([worker], timeout=30)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(UserError, match="Resource temporarily unavailable"), Sandbox(echo) as sandbox:
        list(sandbox.run([1]))
