"""The timer that ends a rank which gets nowhere: in processes of their own, since it ends them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT
from trainer import watchdog

HANGS = {
    "python": "import time; time.sleep(60)",
    "held GIL": "import ctypes; ctypes.PyDLL(None).sleep(60)",
    "fifo": "import os; os.mkfifo(folder / 'fifo'); open(folder / 'fifo')",
    "endless loop in C": "import itertools; all(itertools.repeat(True))",
}
HEAD = """
import sys
from pathlib import Path
from trainer import watchdog
watchdog.GRACE_S = 0.5
folder = Path(sys.argv[1])
"""


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-c", HEAD + text, str(folder)]
    return subprocess.run(code, capture_output=True, text=True, timeout=30, cwd=ROOT)


@pytest.mark.parametrize("name", HANGS)
def test_hanging_process_is_ended_with_its_stacks(name: str, tmp_path: Path) -> None:
    text = f"watchdog.arm(folder, 3, 2, 1.0); watchdog.pat('the wait')\n{HANGS[name]}\nprint('went on')"
    done = run(tmp_path, text)
    assert done.returncode == 1
    assert "went on" not in done.stdout
    stacks = (tmp_path / "stacks-rank-00003-attempt-2.txt").read_text()
    assert "during the wait" in stacks.splitlines()[0]
    assert "Timeout (0:00:01.5" in stacks
    assert 'File "<string>"' in stacks
    said = watchdog.verdict(tmp_path, 2)
    assert said is not None
    assert said.startswith("rank 3 got nowhere during the wait and was ended; its stacks are in ")
    assert watchdog.verdict(tmp_path, 1) is None


def test_process_that_gets_on_lives_and_leaves_nothing(tmp_path: Path) -> None:
    text = "import time\nwatchdog.arm(folder, 0, 1, 1.0)\nfor i in range(20): time.sleep(0.15); watchdog.pat('step')\n"
    assert run(tmp_path, text + "watchdog.disarm(); time.sleep(2)").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_stage_with_a_deadline_of_its_own_may_take_longer(tmp_path: Path) -> None:
    text = "import time\nwatchdog.arm(folder, 0, 1, 0.5); watchdog.pat('k-means', at_most_s=30); time.sleep(2)\n"
    assert run(tmp_path, text + "watchdog.pat('step'); time.sleep(20)").returncode == 1
    assert "during step" in str(watchdog.verdict(tmp_path, 1))


def test_error_is_written_with_the_stacks_of_all_threads(tmp_path: Path) -> None:
    watchdog.arm(tmp_path, 0, 1, 60.0)
    try:
        watchdog.pat("the gather")
        watchdog.dump(RuntimeError("late peer"))
    finally:
        watchdog.disarm()
    text = (tmp_path / "stacks-rank-00000-attempt-1.txt").read_text()
    assert "during the gather" in text.splitlines()[0]
    assert "RuntimeError: late peer" in text
    assert "test_error_is_written_with_the_stacks" in text
    assert watchdog.verdict(tmp_path, 1) is None  # no deadline


def test_verdict_names_the_culprit_before_its_peers(tmp_path: Path) -> None:
    def left(rank: int, text: str) -> None:
        (tmp_path / f"stacks-rank-{rank:05d}-attempt-1.txt").write_text("10:00:00 during the gather   \n" + text)

    left(0, "Traceback\ntrainer.distributed.CollectiveTimeout: rank 0 lost its peers during x: closed\nCurrent thread")
    assert str(watchdog.verdict(tmp_path, 1)).startswith("rank 0 lost its peers during x: closed; its stacks are in")
    left(1, "Timeout (0:10:00)!\nThread 0x1")
    assert str(watchdog.verdict(tmp_path, 1)).startswith("rank 1 got nowhere during the gather and was ended")
