"""status.json: atomic, complete, refuses what it does not know; the command prints one word."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path

import pytest

from data_shards.errors import UserError
from launch import status


def test_fields_not_named_keep_their_value(tmp_path: Path) -> None:
    status.write_status(tmp_path, state="running", epoch=0, step=0, world_size=2, attempt=0)
    status.write_status(tmp_path, epoch=3, step=120, num_subspaces=2)
    found = json.loads((tmp_path / "status.json").read_text())
    assert {k: found[k] for k in ("state", "epoch", "step", "world_size", "attempt", "num_subspaces")} == {
        "state": "running", "epoch": 3, "step": 120, "world_size": 2, "attempt": 0, "num_subspaces": 2,
    }  # fmt: skip
    assert found["exit_code"] is None
    assert found["reason"] is None
    assert status.read_status(tmp_path) == found


def test_running_again_clears_the_reason_of_the_attempt_before(tmp_path: Path) -> None:
    status.write_status(tmp_path, state="preempted", exit_code=75, reason="SIGTERM", step=9)
    found = status.write_status(tmp_path, state="running", attempt=1)
    assert (found["exit_code"], found["reason"], found["step"]) == (None, None, 9)


@pytest.mark.parametrize("fields", [{"state": "finished"}, {"stage": 1}, {"state": "running", "speed": 3}])
def test_unknown_states_and_fields_are_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"state|field"):
        status.write_status(tmp_path, **fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"state": "odd"}', b"\xff\xfe"])
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path, text: str | bytes | None) -> None:
    if text is not None:
        (tmp_path / "status.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError) as error:
        status.read_status(tmp_path)
    assert error.value.exit_code == 2
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    status.write_status(tmp_path, state="running", step=0, reason="")
    stop = threading.Event()

    def write() -> None:
        for step in range(150):
            status.write_status(tmp_path, step=step, reason="x" * (step * 50))
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        found = status.read_status(tmp_path)
        assert len(found["reason"]) in (0, found["step"] * 50)
    writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("state", status.STATES)
def test_the_command_prints_the_state_alone(tmp_path: Path, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    status.write_status(tmp_path, state=state)
    assert status.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{state}\n"


def test_the_command_prints_another_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status.write_status(tmp_path, state="preempted", step=12)
    for field, shown in (("step", "12"), ("reason", ""), ("state", "preempted")):
        assert status.main([str(tmp_path), field]) == 0
        assert capsys.readouterr().out == f"{shown}\n"


def test_the_module_runs_without_heavy_imports(tmp_path: Path) -> None:
    status.write_status(tmp_path, state="preempted")
    code = (
        "import sys; sys.argv = ['launch.status', sys.argv[1]]\n"
        "from launch import status; rc = status.main()\n"
        "heavy = {'torch', 'ray', 'numpy', 'matplotlib', 'rich', 'yaml'} & set(sys.modules)\n"
        "sys.exit(rc or len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "preempted\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a", "b"], ["/no/such/run"], ["a", "step", "b"]])
def test_the_command_refuses_what_is_no_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_a_phase_is_gone_with_its_state(tmp_path: Path) -> None:
    status.write_status(tmp_path, state="running", phase="clustering")
    assert status.write_status(tmp_path, step=4)["phase"] == "clustering"
    assert status.write_status(tmp_path, state="running")["phase"] is None
    status.write_status(tmp_path, phase="validation")
    assert status.write_status(tmp_path, state="failed", exit_code=4)["phase"] is None


def test_timestamp_reads_numbers_and_iso_text() -> None:
    moment = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
    assert status.timestamp("2026-03-01T12:30:00Z") == status.timestamp(moment.isoformat()) == moment.timestamp()
    assert status.timestamp(12) == 12.0
    assert status.timestamp(None) is None
    assert status.timestamp("soon") is None
