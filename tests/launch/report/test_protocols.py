"""The table of protocols: what is said of each, and where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launch.report import protocols, write_report
from launch.report.collect import Evaluation
from launch.report.tables import UNKNOWN
from launch.score_table import print_scores
from tests.launch.report.test_page import Page
from tests.launch.report.test_tables import run_of

PLAIN: dict[str, Any] = {"gallery": "leave_one_out", "num_gallery": 90, "rerank": "none", "rerank_arguments": {}}
PLAIN |= {"exclude": "none", "recall": {"1": 0.5}, "macro_recall_at_1": 0.25, "map_at_r": 0.125}
TRAIN = {**PLAIN, "gallery": "train", "num_gallery": 700, "recall": {"1": 0.75}}
RERANKED = {**TRAIN, "rerank": "k_reciprocal", "rerank_arguments": {"k1": 20, "k2": 6}, "exclude": "group"}
SCANS = {**PLAIN, "scans": {"eta_p": 0.9, "eta_w": 0.8, "eta_total": 0.72}}


def table(*found: dict[str, Any]) -> dict[str, Any] | None:
    return protocols.protocol_table(run_of(evaluations={"test": Evaluation("test", {"protocols": list(found)}, None)}))


def test_leave_one_out_alone_needs_no_table() -> None:
    assert table(PLAIN) is None
    assert table() is None
    assert protocols.protocol_table(run_of()) is None


def test_every_line_says_what_is_searched_and_in_which_order() -> None:
    found = table(PLAIN, TRAIN)
    assert found is not None
    assert [heading for heading, _ in found["columns"]] == [
        *("Gallery", "Images", "Re-ranked", "recall@1", "macro recall@1", "MAP@R")
    ]
    assert [kind for _, kind in found["columns"]] == ["", "number extra", "", "number", "number extra", "number"]
    assert found["orders"] == []
    assert [row["cells"] for row in found["rows"]] == [
        ["leave-one-out", "90", "no", "0.500", "0.250", "0.125"],
        ["training images", "700", "no", "0.750", "0.250", "0.125"],
    ]
    found = table(PLAIN, RERANKED)
    assert found is not None
    assert found["orders"] == ["k-reciprocal: k1 20, k2 6"]
    assert [row["cells"][2:4] for row in found["rows"]] == [
        ["no", "nothing"],
        ["k-reciprocal", "own group"],
    ]


def test_scans_and_what_is_missing() -> None:
    found = table(SCANS, {**TRAIN, "recall": {}})
    assert found is not None
    assert [heading for heading, _ in found["columns"][-3:]] == ["η_p", "η_W", "η_total"]
    assert [row["cells"][-3:] for row in found["rows"]] == [["0.900", "0.800", "0.720"], [UNKNOWN] * 3]
    assert found["rows"][1]["cells"][3] == UNKNOWN


@pytest.fixture
def changed(digit_run: Path, tmp_path: Path) -> Path:
    """Return a run whose test split was searched in other ways too, and without its own scans."""
    run = tmp_path / "run"
    shutil.copytree(digit_run, run)
    path = run / "evaluation/test.json"
    scores = {**json.loads(path.read_text()), "exclude": "scan", "protocols": [SCANS, RERANKED]}
    path.write_text(json.dumps(scores))
    return run


def test_the_page_has_the_table_and_says_what_is_left_out(changed: Path, digit_run: Path) -> None:
    text = Page(write_report(changed).read_text(encoding="utf-8")).text
    assert "in which order (k-reciprocal: k1 20, k2 6)." in text
    assert "searched among all others, without patches of its own scan." in text
    assert "They are searched by leave-one-out, without patches of its own scan." in text
    assert "0.720" in text
    plain = Page(write_report(digit_run).read_text(encoding="utf-8")).text
    assert "other protocols" not in plain
    assert "searched among all others." in plain


def test_the_terminal_has_it_too(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_scores({"test": json.loads((changed / "evaluation/test.json").read_text())})
    said = " ".join(capsys.readouterr().out.split())
    assert "without patches of its own scan" in said
    assert "training images" in said
    assert "0.720" in said
