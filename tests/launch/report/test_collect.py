"""Reading a run folder: the last attempt wins, a cut line is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_shards.errors import UserError
from launch.report import figures
from launch.report.collect import read_run, score


def write(run: Path, name: str, *records: object) -> None:
    (run / name).write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path, "status.json", {"state": "running"})
    return tmp_path


def test_steps_repeated_by_a_restart_count_once(run: Path) -> None:
    lines = [{"epoch": s // 4, "step": s, "loss": 1.0} for s in range(8)]
    again = [{"epoch": s // 4, "step": s, "loss": 2.0} for s in range(6, 12)]
    write(run, "metrics.jsonl", *lines, *again)
    found = read_run(run)
    assert [s["step"] for s in found.steps] == list(range(12))
    assert [s["loss"] for s in found.steps] == [1.0] * 6 + [2.0] * 6
    positions = figures.step_positions(found.steps)
    assert positions == pytest.approx([e + f for e in range(3) for f in (0.125, 0.375, 0.625, 0.875)])


def test_cut_and_foreign_lines_are_left_out(run: Path) -> None:
    (run / "events.jsonl").write_text('{"event": "started"}\n[1]\n{"event": "gro')
    assert [e["event"] for e in read_run(run).events] == ["started"]


def test_config_that_is_not_yaml_is_named(run: Path) -> None:
    (run / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"config\.yaml is not valid YAML"):
        read_run(run)


def test_score_reads_every_form() -> None:
    scores = {"recall": {"1": 0.5}, "nmi": {"mean": 0.25, "std": 0.1}, "map_at_r": 0.125, "ami": {"mean": float("nan")}}
    assert [score(scores, n) for n in ("recall@1", "nmi", "map_at_r")] == [0.5, 0.25, 0.125]
    assert [score(scores, n) for n in ("recall@2", "ami", "r_precision")] == [None, None, None]
