"""Exact distances are one number per pair of row and centroid."""

from __future__ import annotations

import numpy as np

from cluster.backend import exact_distances


def test_a_distance_depends_on_its_own_pair_alone() -> None:
    rng = np.random.default_rng(3)
    for width in (1, 3, 8, 17, 128, 515):
        rows, others = rng.standard_normal((2, 50, width)).astype(np.float32)
        whole = exact_distances(rows, others)
        for start, stop in ((0, 1), (3, 5), (49, 50), (10, 43)):
            np.testing.assert_array_equal(exact_distances(rows[start:stop], others[start:stop]), whole[start:stop])


def test_an_exact_distance_is_that_of_a_slow_sum() -> None:
    rng = np.random.default_rng(4)
    for width in (1, 7, 8, 9, 64, 515):
        rows, others = rng.standard_normal((2, 20, width)).astype(np.float32)
        expected = [
            sum((float(a) - float(b)) ** 2 for a, b in zip(*pair, strict=True))
            for pair in zip(rows, others, strict=True)
        ]
        np.testing.assert_allclose(exact_distances(rows, others), expected, rtol=1e-13)
