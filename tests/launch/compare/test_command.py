# ruff: noqa: RUF001
"""The command: what is started, what is not, exit codes, and the files that it leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.compare import command
from launch.compare.cells import Cell
from tests.launch.compare.make_sweep import complete, write_runs, write_sweep
from tests.launch.compare.test_runner import Scripted, fail, preempt

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Return an executor in place of processes; configurations count as checked."""
    scripted = Scripted({})
    monkeypatch.setattr(command, "LocalProcesses", lambda: scripted)
    monkeypatch.setattr(command, "check", lambda cells, split, build_shards: None)
    return scripted


def test_all_runs_and_all_files(tmp_path: Path, cli: Cli, script: Scripted) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    code, printed, said = cli("compare", path, "--out", out)
    assert code == 0
    assert len(script.log) == 6
    assert printed == (out / "compare.md").read_text()
    for name in ("compare.csv", "compare.json", "compare.html", "plots/differences-digits.png"):
        assert (out / name).stat().st_size > 0, name
    assert "completed digits adsl seed 0  NMI 0." in said
    assert "; 6 of 6\n" in said


def test_finished_runs_are_not_started_again(tmp_path: Path, cli: Cli, script: Scripted) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    write_runs(path, out, skip=("digits mml-2 seed 1",))
    code, _, said = cli("compare", path, "--out", out)
    assert (code, script.log) == (0, ["digits mml-2 seed 1"])
    assert "5 of 6 runs are complete already" in said
    assert cli("compare", path, "--out", out)[0] == 0
    assert len(script.log) == 1


def test_a_failed_run_is_told_at_the_end_and_is_an_empty_cell(tmp_path: Path, cli: Cli, script: Scripted) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    script.script = {f"digits single seed {seed}": fail for seed in (0, 1)}
    code, printed, said = cli("compare", path, "--out", out)
    assert code == 70
    assert said.endswith("failed: digits single seed 1: loss not finite at step 3\n")
    assert "| single | – | – | – | – | – | – |" in printed
    assert "- digits single seed 0: loss not finite at step 3" in printed
    script.script = {}
    assert cli("compare", path, "--out", out)[0] == 0  # the same command tries again, those alone
    assert script.log[6:] == ["digits single seed 0", "digits single seed 1"]


def test_a_stopped_comparison_ends_with_75_and_goes_on(tmp_path: Path, cli: Cli, script: Scripted) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    script.script = {"digits adsl seed 1": preempt}
    script.before_end = lambda: os.kill(os.getpid(), signal.SIGTERM) if len(script.log) == 2 else None
    code, printed, said = cli("compare", path, "--out", out)
    assert (code, printed) == (75, "")
    assert "preempted digits adsl seed 1" in said
    assert script.log == ["digits adsl seed 0", "digits adsl seed 1", "stop"]
    script.script, script.before_end = {}, lambda: None
    assert cli("compare", path, "--out", out)[0] == 0
    assert script.log[3:5] == ["digits adsl seed 1", "digits mml-2 seed 0"]


def test_tables_only_starts_nothing(tmp_path: Path, cli: Cli, script: Scripted) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    write_runs(path, out, skip=("digits mml-2 seed 0", "digits mml-2 seed 1", "digits adsl seed 1"))
    code, printed, _ = cli("compare", path, "--out", out, "--tables-only")
    assert (code, script.log) == (0, [])
    assert "| ADSL (1 of 2 seeds) |" in printed
    assert "- digits mml-2 seed 1: not run yet" in printed
    code, printed, _ = cli("compare", path, "--out", tmp_path / "empty", "--tables-only", "--json")
    assert code == 0
    assert printed.startswith("{")


def test_dry_run_lists_what_would_be_done(tmp_path: Path, cli: Cli, script: Scripted) -> None:
    path, out = write_sweep(tmp_path), tmp_path / "out"
    complete(_first(path, out))
    code, printed, _ = cli("compare", path, "--out", out, "--dry-run")
    assert (code, script.log) == (0, [])
    lines = printed.splitlines()
    assert lines[0].startswith("complete  digits adsl seed 0  subspace train ")
    assert lines[3].startswith("run       digits mml-2 seed 1  subspace train ")
    assert lines[3].endswith("--resume auto model.num_subspaces=2 seed=1")
    assert not (out / "compare.md").exists()


def _first(path: Path, out: Path) -> Cell:
    return write_runs(path, out, skip=tuple(f"digits {m} seed {s}" for m in ("mml-2", "single") for s in (0, 1)))[0]


def test_no_runs_at_a_time_is_a_mistake(tmp_path: Path, cli: Cli, script: Scripted) -> None:
    code, _, said = cli("compare", write_sweep(tmp_path), "--parallel", "0")
    assert (code, said) == (2, "subspace: --parallel 0: at least one run at a time\n")
