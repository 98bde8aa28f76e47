"""Processes that must not outlive the one that started them, or the work that they were started for."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

STACKS_SIGNAL = signal.SIGUSR2


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: an orphan must not go on working (Linux only)."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def dump_stacks_on_signal(folder: str, name: str) -> None:
    """Write the stacks of all threads to FOLDER/stacks-NAME.txt whenever STACKS_SIGNAL comes.

    Without a folder ("", or one whose parent is not on this machine) the signal is ignored.
    """
    signal.signal(STACKS_SIGNAL, signal.SIG_IGN)
    if not folder:
        return
    with suppress(OSError):
        Path(folder).mkdir(exist_ok=True)
        file = (Path(folder) / f"stacks-{name}.txt").open("a")
        faulthandler.register(STACKS_SIGNAL, file)  # keeps the file open


def below(process: psutil.Process) -> list[psutil.Process]:
    """Return all processes below this one; none when it has ended."""
    with suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []


def descendants(name: str) -> list[psutil.Process]:
    """Return the children of this process that are called `name`, and all below them."""
    roots = [child for child in psutil.Process().children() if child.name() == name]
    return roots + [process for root in roots for process in below(root)]


def end(processes: Sequence[psutil.Process], patience_s: float = 3.0) -> None:
    """Wait for processes that are about to end, and kill what does not.

    Ray's agents look for their raylet only once they have started, which takes them a minute on a busy machine.
    """
    _, alive = psutil.wait_procs(processes, patience_s)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # psutil checks that it is still the same process
    psutil.wait_procs(alive, patience_s)
