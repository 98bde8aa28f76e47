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


def test_places_are_permuted_evenly_for_any_size() -> None:
    for size in (1, 2, 3, 4, 5, 7, 16, 17, 24, 100, 1000):
        places = np.arange(size)
        keys = keyed.fold(keyed.key(7, "p", size), np.arange(5000))
        for each in keys[:50]:
            found = keyed.permuted(each.repeat(size), np.full(size, size), places)
            assert sorted(found.tolist()) == places.tolist()
        first, second = (keyed.permuted(keys, np.full(5000, size), np.full(5000, p)) for p in (0, size - 1))
        if 2 < size < 30:  # where two places go: chi squared of a uniform draw, four deviations at most
            counts = np.bincount(first * size + second, minlength=size**2).reshape(size, size)[
                ~np.eye(size, dtype=bool)
            ]
            expected = 5000 / len(counts)
            found = ((counts - expected) ** 2 / expected).sum()
            assert found < len(counts) - 1 + 4 * np.sqrt(2 * len(counts))
    sizes = np.array([10, 1000, 3])
    keys = keyed.fold(3, np.arange(3))
    alone = [int(keyed.permuted(keys[i : i + 1], sizes[i : i + 1], np.array([2]))[0]) for i in range(3)]
    assert keyed.permuted(keys, sizes, np.array([2, 2, 2])).tolist() == alone
