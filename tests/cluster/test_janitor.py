"""Ray's folder goes with its owner, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil

from cluster.janitor import RayFolder, users
from tests.runs import ROOT, wait_until

# A process of Ray's kind below the folder: it outlives its parent and ignores what can be ignored.
OWNER = """
    import subprocess, sys, time
    from cluster.janitor import RayFolder
    folder = RayFolder()
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    log = open(folder.path + "/raylet.out", "w")
    child = subprocess.Popen([sys.executable, "-c", sleeper, "ray"], stdout=log, start_new_session=True)
    print(folder.path, child.pid, folder._janitor.pid, flush=True)
    time.sleep(600)
"""


def test_folder_and_processes_of_a_killed_owner_are_gone() -> None:
    command = [sys.executable, "-c", textwrap.dedent(OWNER)]
    owner = psutil.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    folder, child, janitor = owner.stdout.readline().split()
    wait_until(lambda: int(child) in users(folder), "the child to be seen", 30)
    assert set(users(folder)) <= {owner.pid, int(child)}
    time.sleep(0.5)
    os.kill(int(janitor), signal.SIGTERM)  # of no use
    os.killpg(owner.pid, signal.SIGKILL)
    owner.wait()
    wait_until(lambda: not Path(folder).exists() and not psutil.pid_exists(int(child)), "the end of both", 30)
    wait_until(lambda: not psutil.pid_exists(int(janitor)), "the end of the janitor", 30)


def test_closed_folder_leaves_no_janitor() -> None:
    folder = RayFolder()
    janitor = psutil.Process(folder._janitor.pid)
    assert Path(folder.path).is_dir() and Path(folder.path).parent.stat().st_mode & 0o777 == 0o700
    folder.close()
    folder.close()
    assert not Path(folder.path).parent.exists()
    assert not janitor.is_running()
