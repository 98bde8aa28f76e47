"""The claim on numbers written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.compare.claim import verdicts
from launch.compare.summary import Summary, summarised
from launch.compare.sweep_file import read_sweep
from tests.launch.compare.make_sweep import write_sweep

METHODS: dict[str, Any] = {"adsl": {}, "mml-2": {}, "mml-4": {}, "other": {}}


def scores_of(**values: list[float]) -> dict[str, dict[str, Summary]]:
    found = {name.replace("_", "-"): summarised(dict(enumerate(numbers))) for name, numbers in values.items()}
    return {name: {} if summary is None else {"nmi": summary} for name, summary in found.items()}


@pytest.mark.parametrize(
    ("adsl", "keeps_up", "steady"),
    [([0.49, 0.51], True, True), ([0.44, 0.46], False, True), ([0.2, 1.0], True, False)],
)
def test_the_reference_is_held_against_the_best_rival(
    tmp_path: Path, adsl: list[float], keeps_up: bool, steady: bool
) -> None:
    """The best rival is mml-4: mean 0.55, sample deviation 0.0707, so 0.479 is to be reached; `other` is no rival."""
    sweep = read_sweep(write_sweep(tmp_path, methods=METHODS, titles={}, claim={"metrics": ["nmi"]}))
    scores = scores_of(adsl=adsl, mml_2=[0.3, 0.3], mml_4=[0.5, 0.6], other=[0.9, 0.95])
    (found,) = verdicts(sweep, scores)
    assert (found.rival, found.keeps_up, found.steady) == ("mml-4", keeps_up, steady)
    deviations = sorted([summary["nmi"].std or 0.0 for summary in scores.values()])
    assert found.median_std == pytest.approx((deviations[1] + deviations[2]) / 2)


def test_one_seed_decides_nothing_and_no_rival_asks_nothing(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path, methods=METHODS, titles={}, claim={"metrics": ["nmi"]}))
    (found,) = verdicts(sweep, scores_of(adsl=[0.5], mml_2=[0.3], mml_4=[], other=[0.9]))
    assert (found.rival, found.keeps_up, found.steady) == ("mml-2", None, None)
    assert verdicts(sweep, scores_of(adsl=[0.5, 0.6], mml_2=[], mml_4=[], other=[0.9, 0.8])) == []
    assert verdicts(sweep, scores_of(adsl=[], mml_2=[0.5], mml_4=[], other=[0.9, 0.8])) == []
