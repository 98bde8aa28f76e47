"""The lines of progress, with a clock of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.compare import progress
from launch.compare.cells import cells
from launch.compare.sweep_file import read_sweep
from tests.launch.compare.make_sweep import complete, write_sweep


def test_estimates_come_from_the_runs_that_are_most_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    path = write_sweep(tmp_path)
    sweep = read_sweep(path)
    found = cells(sweep, path, tmp_path / "out")  # adsl 0, 1; mml-2 0, 1; single 0, 1
    complete(found[0])  # its events are 60 s apart
    told = progress.Progress(sweep, found[1:], found[:1], num_parallel=2)
    for cell in found[1:3]:
        told.tell("started", cell, 0.0)
    clock[0] = 20.0
    complete(found[1])
    told.tell("completed", found[1], 20.0)
    told.tell("failed", found[2], 20.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 of 6 runs are complete already"
    assert lines[1] == f"started   digits adsl seed 1  ({found[1].run})"
    assert lines[3].startswith("completed digits adsl seed 1  NMI 0.")
    # runs of adsl took 60 s and 20 s, 40 s on the average; four are left, one began 20 s ago, two work at a time
    assert lines[3].endswith("20 s; 2 of 6, about 70 s left")
    assert lines[4] == "failed    digits mml-2 seed 0  20 s; 3 of 6, about 60 s left"
