"""Keyed draws: pure, independent of what else is drawn, uniform."""

from __future__ import annotations

import numpy as np
from scipy import stats

from data_shards import keyed


def test_key_separates_parts_and_types() -> None:
    assert keyed.key(1, "order") == keyed.key(1, "order")
    assert len({keyed.key(1, 23), keyed.key(12, 3), keyed.key("1", 23), keyed.key(1, "23"), keyed.key(23, 1)}) == 5


def test_rows_do_not_depend_on_each_other() -> None:
    ids = np.arange(100)
    whole = keyed.uniform(keyed.fold(keyed.key(0, "a"), ids), 5)
    for row in (0, 17, 99):
        alone = keyed.uniform(keyed.fold(keyed.key(0, "a"), [row]), 7)
        assert np.array_equal(alone[0, :5], whole[row])


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = keyed.uniform(keyed.fold(keyed.key(3, "b"), np.arange(20_000)), 4)
    assert draws.min() >= 0 and draws.max() < 1
    for column in range(4):
        assert stats.kstest(draws[:, column], "uniform").pvalue > 1e-4
    off_diagonal = np.corrcoef(draws.T) - np.eye(4)
    assert np.abs(off_diagonal).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03


def test_generator_is_keyed() -> None:
    assert np.array_equal(keyed.generator(1, "x").permutation(50), keyed.generator(1, "x").permutation(50))
    assert not np.array_equal(keyed.generator(1, "x").permutation(50), keyed.generator(2, "x").permutation(50))
