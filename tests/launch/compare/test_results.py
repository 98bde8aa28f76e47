"""What a run folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_shards.errors import DataIntegrityError, UserError
from launch.compare.cells import Cell, cells
from launch.compare.results import read_result, split_of, title, wall_seconds, why_missing
from launch.compare.sweep_file import read_sweep
from launch.status import write_status
from tests.launch.compare.make_sweep import complete, write_sweep


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    path = write_sweep(tmp_path)
    return cells(read_sweep(path), path, tmp_path / "out")[0]


def test_scores_by_their_names(cell: Cell) -> None:
    complete(cell)
    found = read_result(cell)
    assert found is not None
    stored = json.loads((cell.run / "evaluation/test.json").read_text())
    assert found.score("test", "nmi") == stored["nmi"]["mean"]
    assert found.score("test", "recall_at_4") == stored["recall"]["4"]
    assert found.score("test", "map_at_r") == stored["map_at_r"]
    assert found.score("test", "macro_recall_at_1") == stored["macro_recall_at_1"]
    assert (found.steps, found.num_subspaces, found.wall_s) == (300, 1, 60)
    with pytest.raises(DataIntegrityError, match="no nmi of the validation split"):
        found.score("validation", "nmi")
    assert split_of([found], "auto") == "test"
    assert split_of([found], "validation") == "validation"
    assert [title(name) for name in ("nmi", "recall_at_8", "macro_recall_at_1")] == [
        "NMI",
        "recall@8",
        "macro recall@1",
    ]


def test_a_damaged_evaluation_is_named(cell: Cell) -> None:
    complete(cell)
    (cell.run / "evaluation/test.json").write_text("{")
    with pytest.raises(DataIntegrityError, match=r"test\.json is damaged"):
        read_result(cell)


def test_scores_of_another_protocol_are_not_compared(cell: Cell) -> None:
    complete(cell)
    path = cell.run / "evaluation/test.json"
    scores = json.loads(path.read_text())
    path.write_text(json.dumps({**scores, "exclude": "none"}))
    assert read_result(cell) is not None
    path.write_text(json.dumps({**scores, "exclude": "group"}))
    with pytest.raises(UserError, match=r"evaluate\.exclude group, the comparison is with none"):
        read_result(cell)


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"state": "preempted"}, "stopped before its end"),
        ({"state": "running"}, "running, or killed"),
        ({"state": "failed", "exit_code": 4, "reason": "not finite"}, "not finite"),
        ({"state": "failed", "exit_code": 4}, "exit code 4"),
    ],
)
def test_a_run_that_is_not_completed_has_no_result_but_a_reason(cell: Cell, status: dict, why: str) -> None:
    assert (read_result(cell), why_missing(cell)) == (None, "not run yet")
    write_status(cell.run, **status)
    assert (read_result(cell), why_missing(cell)) == (None, why)


def test_pauses_between_attempts_do_not_count(tmp_path: Path) -> None:
    times = [(100, 1), (130, 1), (1000, 2), (1005, 2), (1010, None)]
    lines = [{"time": t, "event": "x", **({"attempt": a} if a else {})} for t, a in times]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert wall_seconds(tmp_path) == 35
