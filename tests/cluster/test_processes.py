"""Processes that end with the one that started them."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import psutil

from cluster.processes import below, descendants, end
from tests.runs import ROOT, wait_until


def sleeper() -> psutil.Popen:
    """Start a process that has a child and ignores SIGTERM; left alone, both would sleep for a long time."""
    program = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("here", flush=True)
        time.sleep(600)
    """
    process = psutil.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    return process


def ended(process: psutil.Process) -> bool:
    """Return whether a process is gone, or waits for nothing but that its end is noticed."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_family_is_ended_and_a_dead_one_has_nobody_below() -> None:
    process = sleeper()
    family = [process, *below(process)]
    assert len(family) == 2
    assert {member.pid for member in family} <= {member.pid for member in descendants(process.name())}
    end(family, patience_s=0.1)
    assert all(ended(member) for member in family)
    assert below(process) == []
    end(family, patience_s=0.1)  # once more does no harm


def test_child_dies_with_its_parent() -> None:
    program = """
        import subprocess, sys, time
        from cluster.processes import die_with_parent
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=die_with_parent)
        print(child.pid, flush=True)
        time.sleep(600)
    """
    parent = psutil.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    wait_until(lambda: ended(child), "the end of the child", 30)
