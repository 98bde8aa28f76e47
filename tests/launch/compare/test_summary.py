"""Mean, spread and marks."""

from __future__ import annotations

import statistics

import pytest

from launch.compare.summary import marks, summarised


def test_spread_is_the_sample_standard_deviation() -> None:
    values = {0: 0.5, 1: 0.7, 4: 0.9}
    found = summarised(values)
    assert found is not None
    assert found.mean == pytest.approx(statistics.mean(values.values()))
    assert found.std == pytest.approx(statistics.stdev(values.values()))


def test_one_seed_has_no_spread_and_none_no_summary() -> None:
    one = summarised({3: 0.5})
    assert one is not None
    assert (one.mean, one.std) == (0.5, None)
    assert summarised({}) is None


def test_best_and_second_are_marked_by_the_digits_that_are_shown() -> None:
    assert marks({"a": 0.9, "b": 0.8, "c": 0.7}) == {"a": "best", "b": "second", "c": ""}
    assert marks({"a": 0.90001, "b": 0.90002, "c": 0.7, "d": 0.6}) == {"a": "best", "b": "best", "c": "second", "d": ""}
    assert marks({"a": 0.5, "b": 0.5}) == {"a": "best", "b": "best"}
    assert marks({"a": 0.5}) == {"a": ""}
    assert marks({}) == {}
