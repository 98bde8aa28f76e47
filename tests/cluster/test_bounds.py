"""Bounds save looks and never a label: the k-means with them is, iteration by iteration, the one without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.bounds import Bounds, Drift
from cluster.kmeans import KMeansShard
from cluster.shard import Partial
from cluster.sums import Scale
from tests.cluster.test_index import BACKENDS

KINDS = ["normal", "grid", "far", "outlier", "tiny"]


def made(kind: str, num_rows: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num_rows, width))
    if kind == "grid":
        rows = rng.integers(0, 3, rows.shape).astype(float)  # equal rows and exact ties
    if kind == "far":
        rows = 1000.0 + 1e-3 * rows
    if kind == "outlier":
        rows[0] *= 1e6
    if kind == "tiny":
        rows *= 1e-25
    return rows.astype(np.float32)


def moved(centroids: np.ndarray, sums: np.ndarray, counts: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the means of what was added up; a centroid without rows stays."""
    means, filled = centroids.copy(), counts > 0
    means[filled] = scale.values(sums[filled]) / counts[filled, None]
    return means


def walk(rows: np.ndarray, shards: list[KMeansShard], centroids: np.ndarray, num: int) -> list[tuple[np.ndarray, ...]]:
    """Return centroids, counts and labels of every iteration."""
    scale, seen = Scale.of(len(rows), float(np.abs(rows).max())), []
    norm = max(shard.summary(0).max_norm for shard in shards)
    for _ in range(num):
        partials: list[Partial] = [shard.assign(0, centroids, scale, norm) for shard in shards]
        sums, counts = (np.sum([p[i] for p in partials], axis=0) for i in (0, 1))
        found = [shard.labels(0, centroids, scale, norm) for shard in shards]
        order = np.argsort(np.concatenate([ids for ids, _ in found]))
        seen.append((centroids, counts, np.concatenate([labels for _, labels in found])[order]))
        centroids = moved(centroids, sums, counts, scale)
    return seen


def shards_of(rows: np.ndarray, num: int, backend: str, prune: bool) -> list[KMeansShard]:
    shards = [KMeansShard(backend, prune=prune) for _ in range(num)]
    for part, shard in zip(np.array_split(np.arange(len(rows)), num), shards, strict=True):
        for ids in np.array_split(part, 3):
            shard.put(0, ids, rows[ids])
    return shards


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(KINDS),
    backend=st.sampled_from(BACKENDS),
    num_rows=st.integers(9, 200),
    width=st.integers(1, 20),
    num_shards=st.integers(1, 3),
    data=st.data(),
)
def test_every_iteration_is_that_of_a_slow_loop(
    kind: str, backend: str, num_rows: int, width: int, num_shards: int, data: st.DataObject
) -> None:
    rows = made(kind, num_rows, width, num_rows)
    start = rows[: data.draw(st.integers(1, 9))]
    pruned = walk(rows, shards_of(rows, num_shards, backend, True), start, 8)
    whole = walk(rows, shards_of(rows, 1, "numpy", False), start, 8)
    for one, two in zip(pruned, whole, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)
        centroids, counts, labels = one
        distances = ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
        chosen = np.take_along_axis(distances, labels[:, None], axis=1)[:, 0]
        np.testing.assert_array_less(chosen, distances.min(axis=1) * (1 + 1e-12) + 1e-300)
        np.testing.assert_array_equal(counts, np.bincount(labels, minlength=len(start)))


@pytest.mark.parametrize("kind", ["normal", "far"])
def test_a_row_that_is_not_due_has_kept_its_label(kind: str) -> None:
    rows, rng = made(kind, 400, 6, 1), np.random.default_rng(2)
    reference = rows[:50].mean(axis=0).astype(np.float64)
    norms = (np.linalg.norm(rows - reference, axis=1) * (1 + 1e-6)).astype(np.float32)
    centroids = rows[:7]
    squares = ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    labels = squares.argmin(axis=1).astype(np.int32)
    two = np.sort(squares, axis=1)
    bounds = Bounds(norms, reference, 7)
    bounds.store(slice(0, 400), labels, (0.999 * (two[:, 1] - two[:, 0])).astype(np.float32))
    skipped = 0
    for size in (1e-3, 1e-2, 3e-2, 0.1, 0.3):
        moved = (centroids + size * centroids.std() * rng.standard_normal(centroids.shape)).astype(np.float32)
        bounds.move(Drift.between(centroids, moved))
        centroids = moved
        now = ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
        due = bounds.due(labels)
        safe = np.setdiff1d(np.arange(400), due)
        skipped += len(safe)
        np.testing.assert_array_equal(now[safe], labels[safe])
    assert skipped > 100 or kind == "far"
