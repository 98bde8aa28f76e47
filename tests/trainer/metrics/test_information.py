"""Mutual information: nothing where there is none, all of it where vectors are the factor, the exact value between."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.metrics.information import information, levels_of


def test_independent_factors_tell_nothing_however_few_the_samples() -> None:
    rng = np.random.default_rng(0)
    for num_samples in (40, 200, 1000):
        found = [information(rng.normal(size=(num_samples, 4)), {"x": rng.random(num_samples)})["x"] for _ in range(8)]
        assert np.mean(found) < 0.05 if num_samples > 100 else np.mean(found) < 0.15


def test_a_factor_of_eight_levels_in_plain_sight_is_three_bits() -> None:
    factor = np.repeat(np.arange(8), 50)
    vectors = np.stack([np.cos(factor), np.sin(factor)], axis=1) + np.random.default_rng(0).normal(0, 1e-3, (400, 2))
    assert 2.7 < information(vectors, {"x": factor})["x"] <= 3.0  # k-means may join two of the eight


def test_half_of_a_factor_is_one_bit_of_it() -> None:
    """Vectors that know only whether a factor is above its median."""
    factor = np.random.default_rng(1).random(800)
    vectors = np.stack([factor > np.median(factor), np.zeros(800)], axis=1) + np.random.default_rng(2).normal(
        0, 1e-3, (800, 2)
    )
    assert information(vectors, {"x": factor})["x"] == pytest.approx(1.0, abs=0.06)


def test_it_does_not_mind_the_scale_or_order_of_a_factor() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(300, 3))
    told = information(vectors, {"x": vectors[:, 0], "y": 1e6 - 5 * vectors[:, 0]})
    assert told["x"] > 0.3
    assert told["x"] == pytest.approx(told["y"], abs=0.1)


def test_levels_hold_equally_many_and_equal_values_stay_together() -> None:
    assert np.bincount(levels_of(np.random.default_rng(0).random(800))).tolist() == [100] * 8
    two = levels_of(np.array([0.0] * 50 + [1.0] * 50))
    assert len(set(two[:50])) == len(set(two[50:])) == 1
    assert two[0] < two[-1]


def test_no_factors_or_too_few_samples() -> None:
    assert information(np.zeros((100, 2)), {}) == {}
    assert information(np.zeros((5, 2)), {"x": np.zeros(5)}) == {}
