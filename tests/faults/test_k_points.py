"""K8: points that no k-means likes, in every backend and on one or three shards: a typed error or a sound result.

Raw faiss ends the whole process at 1e20 and calls seven empty clusters of eight a success. Here each case runs in one
process, which is therefore alive at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cluster.index import check_features
from cluster.kmeans import KMeansResult, kmeans
from data_shards.errors import UserError

NUM_CLUSTERS = 8
BACKENDS = ("numpy", "faiss", "torch")
ROWS = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)


def with_value(value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[17, 3] = value
    return rows


REFUSED: dict[str, tuple[np.ndarray, str]] = {
    "no rows": (ROWS[:0], "cannot make 8 clusters of 0 rows"),
    "fewer rows than clusters": (ROWS[:7], "cannot make 8 clusters of 7 rows"),
    "NaN": (with_value(np.nan), "row 17 are not finite"),
    "infinity": (with_value(np.inf), "row 17 are not finite"),
    "minus infinity": (with_value(-np.inf), "row 17 are not finite"),
    "1e20": (with_value(1e20), "row 17 are not finite or not below 1e\\+15"),
    "float64 beyond float32": (with_value(1).astype(np.float64) * 1e300, "row 0 are not finite"),
    "one axis": (ROWS[:, 0], "needs a \\(rows, features\\) array"),
    "text": (np.full((20, 2), "x"), "needs a \\(rows, features\\) array"),
    "complex": (ROWS.astype(np.complex64), "needs a \\(rows, features\\) array"),
    "objects": (np.full((20, 2), None), "needs a \\(rows, features\\) array"),
}

ACCEPTED: dict[str, tuple[np.ndarray, int]] = {  # rows, and how many clusters have to be empty
    "all rows equal": (np.repeat(ROWS[:1], 50, axis=0), NUM_CLUSTERS - 1),
    "all zeros": (np.zeros((50, 6), np.float32), NUM_CLUSTERS - 1),
    "three distinct rows": (np.repeat(ROWS[:3], 20, axis=0), NUM_CLUSTERS - 3),
    "as many rows as clusters": (ROWS[:NUM_CLUSTERS], 0),
    "one row far away": (with_value(1e14), NUM_CLUSTERS - 2),  # sums have 39 bits below the largest magnitude
    "denormal numbers": (ROWS * np.float32(1e-41), -1),
    "float16": (ROWS.astype(np.float16), 0),
    "float64": (ROWS.astype(np.float64), 0),
    "integers": ((ROWS * 100).astype(np.int32), 0),
    "not contiguous": (np.asfortranarray(ROWS), 0),
    "every second row, backwards": (ROWS[::-2], 0),
    "one feature": (ROWS[:, :1], 0),
}


def everywhere(rows: np.ndarray, check: Callable[[Callable[[], KMeansResult]], None]) -> int:
    for backend in BACKENDS:
        for num_shards in (1, 3):
            check(lambda b=backend, n=num_shards: kmeans(rows, NUM_CLUSTERS, 1, 30, n, b))  # type: ignore[misc]
    return len(BACKENDS) * 2


def sound(rows: np.ndarray, num_empty: int, result: KMeansResult) -> None:
    """Every label is the nearest centroid in float64, counts are those of the labels, empty clusters are said."""
    points = np.ascontiguousarray(rows, dtype=np.float32).astype(np.float64)
    distances = ((points[:, None] - result.centroids.astype(np.float64)) ** 2).sum(axis=2)
    assert np.isfinite(result.centroids).all() and np.isfinite(result.inertia)
    assert np.array_equal(result.labels, distances.argmin(axis=1))
    assert np.array_equal(result.counts, np.bincount(result.labels, minlength=NUM_CLUSTERS))
    assert result.counts.sum() == len(rows)
    assert num_empty < 0 or result.num_empty == num_empty


def test_k8_degenerate_points(record: Any) -> None:
    pid, calls = os.getpid(), 0
    for rows, message in REFUSED.values():

        def refused(fit: Callable[[], KMeansResult], message: str = message) -> None:
            with pytest.raises(UserError, match=message):
                fit()

        calls += everywhere(rows, refused)
    for name, (rows, num_empty) in ACCEPTED.items():
        bytes_seen: set[bytes] = set()

        def accepted(fit: Callable[[], KMeansResult], rows: np.ndarray = rows, num_empty: int = num_empty) -> None:
            result = fit()
            sound(rows, num_empty, result)
            bytes_seen.add(result.centroids.tobytes() + result.labels.tobytes())  # noqa: B023

        calls += everywhere(rows, accepted)
        assert len(bytes_seen) == 1, f"{name}: backends or shards disagree"
    assert os.getpid() == pid
    record("K8", "degenerate points in three backends on one and three shards", typed_errors=len(REFUSED),
           sound_results=len(ACCEPTED), calls=calls, bitwise=True, aborts=0)  # fmt: skip


def test_k8_the_check_comes_before_any_backend() -> None:
    for rows, message in REFUSED.values():
        if len(rows) > NUM_CLUSTERS:
            with pytest.raises(UserError, match=message):
                check_features(rows)
