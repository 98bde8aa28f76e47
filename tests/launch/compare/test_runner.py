"""Carrying runs out: with an executor that decides by itself how runs end, and with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from launch.compare import runner
from launch.compare.cells import Cell, cells
from launch.compare.runner import LOG, Ended, LocalProcesses, Outcome, carry_out
from launch.compare.sweep_file import read_sweep
from launch.status import write_status
from tests.launch.compare.make_sweep import complete, write_sweep
from tests.runs import wait_until


@pytest.fixture
def found(tmp_path: Path) -> list[Cell]:
    path = write_sweep(tmp_path)
    return cells(read_sweep(path), path, tmp_path / "out")


CHAIN = ("start", "frozen", "fine")


class Scripted:
    """Ends one run at every question, in the way that is written for its name; what is not written completes."""

    def __init__(self, script: dict[str, Callable[[Cell], int]]) -> None:
        self.script, self.running, self.log, self.most = script, list[Cell](), list[str](), 0
        self.before_end: Callable[[], None] = lambda: None

    def start(self, cell: Cell) -> None:
        self.log.append(cell.name)
        self.running.append(cell)
        self.most = max(self.most, len(self.running))

    def ended(self) -> list[Ended]:
        self.before_end()
        if not self.running:
            return []
        cell = self.running.pop(0)
        return [Ended(cell, self.script.get(cell.name, finish)(cell))]

    def stop(self) -> None:
        self.log.append("stop")

    def kill(self) -> None:
        self.log.append("kill")


def finish(cell: Cell) -> int:
    complete(cell)
    return 0


def preempt(cell: Cell) -> int:
    write_status(cell.run, state="preempted", exit_code=75)
    return 75


def fail(cell: Cell) -> int:
    write_status(cell.run, state="failed", exit_code=4, reason="loss not finite at step 3")
    return 4


def run_all(found: list[Cell], script: Scripted, parallel: int = 1) -> tuple[Outcome, list[tuple[str, str]]]:
    heard: list[tuple[str, str]] = []
    outcome = carry_out(found, script, parallel, lambda event, cell, seconds: heard.append((event, cell.name)))
    return outcome, heard


def test_every_run_is_carried_out_so_many_at_a_time(found: list[Cell]) -> None:
    script = Scripted({})
    outcome, heard = run_all(found, script, parallel=4)
    assert script.log == [cell.name for cell in found]
    assert script.most == 4
    assert (outcome.exit_code, outcome.failed) == (0, {})
    assert sorted(heard) == sorted((event, cell.name) for cell in found for event in ("started", "completed"))


def test_a_failed_run_does_not_end_the_others(found: list[Cell]) -> None:
    name = found[2].name
    outcome, heard = run_all(found, Scripted({name: fail}))
    assert outcome.failed == {name: "loss not finite at step 3"}
    assert outcome.exit_code == 70
    assert [event for event, _ in heard].count("completed") == 5


def chained(tmp_path: Path) -> list[Cell]:
    """Return runs of two seeds, where "frozen" starts from "start" and "fine" from "frozen"."""
    before = {"frozen": "start", "fine": "frozen"}
    methods = {"start": {}, **{m: {"model.weights": f"@{b}/exported/model.safetensors"} for m, b in before.items()}}
    path = write_sweep(tmp_path, methods=methods, reference="fine", titles={})
    return cells(read_sweep(path), path, tmp_path / "out")


def test_a_run_waits_for_the_one_it_starts_from(tmp_path: Path) -> None:
    script = Scripted({})
    outcome, heard = run_all(chained(tmp_path), script, parallel=4)
    assert outcome.exit_code == 0
    for seed in (0, 1):
        moments = [heard.index((event, f"digits {m} seed {seed}")) for m in CHAIN for event in ("started", "completed")]
        assert moments == sorted(moments)
    assert script.most == 2  # the two seeds side by side, never two links of a chain
    begun = chained(tmp_path)[2:]  # the first links are complete: nothing to wait for
    assert run_all(begun, Scripted({}), parallel=4)[0].exit_code == 0


def test_what_starts_from_a_failed_run_fails_too_and_the_rest_goes_on(tmp_path: Path) -> None:
    outcome, _ = run_all(chained(tmp_path), Scripted({"digits frozen seed 0": fail}), parallel=4)
    assert outcome.failed == {
        "digits frozen seed 0": "loss not finite at step 3",
        "digits fine seed 0": "it starts from digits frozen seed 0, which is not complete",
    }


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("a\nsubspace: the disk is full\n", 2, "the disk is full"),
        ("SyntaxError: invalid syntax\n\n", 1, "exit code 1: SyntaxError: invalid syntax"),
        ("", -11, "killed by signal 11"),
        ("", 1, "exit code 1"),
    ],
)
def test_why_a_run_failed(found: list[Cell], log: str, code: int, reason: str) -> None:
    def crash(cell: Cell) -> int:
        (cell.run / LOG).parent.mkdir(parents=True)
        (cell.run / LOG).write_text(log)
        return code

    outcome, _ = run_all(found[:1], Scripted({found[0].name: crash}))
    assert outcome.failed == {found[0].name: reason}


def test_a_run_that_somebody_else_stopped_is_put_aside(found: list[Cell]) -> None:
    outcome, heard = run_all(found, Scripted({found[0].name: preempt}))
    assert (outcome.exit_code, outcome.put_aside, outcome.stopped) == (75, [found[0].name], False)
    assert heard[1] == ("preempted", found[0].name)


def test_a_damaged_status_is_the_end_of_one_run(found: list[Cell]) -> None:
    def damage(cell: Cell) -> int:
        cell.run.mkdir(parents=True)
        (cell.run / "status.json").write_text("{")
        return 0

    outcome, _ = run_all(found, Scripted({found[0].name: damage}))
    assert list(outcome.failed) == [found[0].name]
    assert "damaged" in outcome.failed[found[0].name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_the_running_and_starts_no_other(found: list[Cell], number: int) -> None:
    script = Scripted({found[0].name: preempt, found[1].name: preempt})
    script.before_end = lambda: os.kill(os.getpid(), number)
    before = signal.getsignal(number)
    outcome, _ = run_all(found, script, parallel=2)
    assert script.log[:2] == [found[0].name, found[1].name]
    assert script.log[2:] == ["stop"]
    assert (outcome.exit_code, outcome.stopped) == (75, True)
    assert signal.getsignal(number) == before


def test_a_second_signal_kills(found: list[Cell]) -> None:
    script = Scripted(dict.fromkeys((cell.name for cell in found), preempt))
    script.before_end = lambda: os.kill(os.getpid(), signal.SIGTERM)
    run_all(found, script, parallel=3)
    assert script.log[3:] == ["stop", "kill"]


SLEEPER = "import time; print('began', flush=True); time.sleep(600)"


def test_processes_are_told_to_stop_or_killed(found: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "command", lambda cell: [sys.executable, "-c", SLEEPER])
    executor = LocalProcesses()
    for cell in found[:2]:
        executor.start(cell)
    wait_until(lambda: all((c.run / LOG).read_text() == "began\n" for c in found[:2]), "the processes")
    assert executor.ended() == []
    executor.stop()
    ended: list[Ended] = []
    wait_until(lambda: bool(ended.extend(executor.ended())) or len(ended) == 2, "their end")
    assert {end.code for end in ended} == {-signal.SIGTERM}
    executor.start(found[2])
    executor.kill()
    wait_until(lambda: bool(ended.extend(executor.ended())) or len(ended) == 3, "its end")
    assert ended[2] == Ended(found[2], -signal.SIGKILL)


OWNER = """
import sys, time
from launch.compare import runner
from launch.compare.cells import cells
from launch.compare.sweep_file import read_sweep
from pathlib import Path
path = Path(sys.argv[1])
runner.command = lambda cell: [sys.executable, "-c", "import time; time.sleep(600)"]
executor = runner.LocalProcesses()
executor.start(cells(read_sweep(path), path, path.parent / "out")[0])
print("started", flush=True)
time.sleep(600)
"""


def test_runs_end_with_a_comparison_that_is_killed(tmp_path: Path) -> None:
    path = write_sweep(tmp_path)
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "started\n"
    (child,) = psutil.Process(owner.pid).children()
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_command_is_that_of_a_person(found: list[Cell]) -> None:
    cell = replace(found[2], run=Path("out/x"))
    words = runner.command(cell)
    assert words[1:4] == ["-m", "launch", "train"]
    assert words[5:] == ["--run-dir", "out/x", "--resume", "auto", "model.num_subspaces=2", "seed=0"]
