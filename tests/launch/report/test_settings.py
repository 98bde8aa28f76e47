"""What a run's settings say beside the file that its command names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.config import load_config
from launch.report.settings import leaves, settings_diff
from tests.launch.report.test_tables import run_of
from tests.runs import ROOT

DEMO = ROOT / "configs" / "demo.yaml"


def test_overrides_are_what_differs() -> None:
    words = ["train.epochs=3", "model.num_subspaces=2", "growth.enabled=false"]
    run = run_of(
        config=load_config(DEMO, words).model_dump(mode="json"), env={"command": ["subspace", "train", str(DEMO)]}
    )
    found = settings_diff(run)
    assert found is not None
    assert found["preset"] == "demo.yaml"
    assert sorted(found["rows"]) == [
        ("growth.enabled", "true", "false"),
        ("model.num_subspaces", "1", "2"),
        ("train.epochs", "40", "3"),
    ]
    same = replace(run, config=load_config(DEMO).model_dump(mode="json"))
    assert settings_diff(same) == {"preset": "demo.yaml", "rows": []}


@pytest.mark.parametrize(
    "command", [None, "train x", [], ["subspace", "evaluate", "x.yaml"], ["subspace", "train", "no.yaml"]]
)
def test_nothing_is_said_without_the_file(command: object) -> None:
    assert settings_diff(run_of(env={"command": command})) is None


def test_a_file_that_is_no_configuration_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("modle: {}\n")
    assert settings_diff(run_of(env={"command": ["subspace", "train", str(tmp_path / "odd.yaml")]})) is None


def test_leaves_are_dotted() -> None:
    assert leaves({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
