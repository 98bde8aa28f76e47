"""Every backend gives the labels of a slow float64 loop, whatever the block."""

from __future__ import annotations

import numpy as np
import pytest

from cluster import index
from cluster.index import NearestCentroid, automatic, make_backend, nearest, row_norm_bound
from data_shards.errors import UserError

BACKENDS = ["numpy", "faiss", "torch", *([] if index.library() is None else ["native"])]


def slow(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.array(
        [np.argmin([((r - c) ** 2).sum() for c in centroids.astype(np.float64)]) for r in rows.astype(np.float64)]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_centroids", [1, 2, 13])
def test_equals_a_slow_loop(backend: str, num_centroids: int) -> None:
    rng = np.random.default_rng(0)
    rows, centroids = rng.standard_normal((150, 12)), rng.standard_normal((num_centroids, 12))
    rows, centroids = rows.astype(np.float32), centroids.astype(np.float32)
    np.testing.assert_array_equal(nearest(rows, centroids, backend), slow(rows, centroids))


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_and_exact_ties_are_decided_exactly(backend: str) -> None:
    """Centroids that differ by a few units of the last place, one of them twice, far from the origin."""
    rng = np.random.default_rng(1)
    base = (100.0 + rng.standard_normal(20)).astype(np.float32)
    centroids = np.stack([base] * 6)
    for k in range(1, 5):
        centroids[k] = np.nextafter(centroids[k - 1], np.float32(1000.0))
    centroids[5] = centroids[2]
    rows = centroids[rng.integers(6, size=200)] + rng.integers(-1, 2, (200, 20)).astype(np.float32) * np.float32(2**-17)
    labels = nearest(rows, centroids, backend)
    np.testing.assert_array_equal(labels, slow(rows, centroids))
    assert not np.any(labels == 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_do_not_depend_on_the_block(backend: str) -> None:
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 3, (400, 7)).astype(np.float32)
    centroids = rng.integers(0, 3, (9, 7)).astype(np.float32)
    index = NearestCentroid(backend)
    index.prepare(centroids, row_norm_bound(rows))
    whole = index.labels(rows)
    parts = [index.labels(part) for part in np.array_split(rows, 17)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(whole, slow(rows, centroids))


@pytest.mark.parametrize("backend", BACKENDS)
def test_largest_allowed_values(backend: str) -> None:
    rows = np.array([[9e14, 0.0], [-9e14, 1.0], [0.0, 9e14]], dtype=np.float32)
    np.testing.assert_array_equal(nearest(rows, rows, backend), [0, 1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_values_that_would_abort_faiss_never_reach_it(bad: float) -> None:
    rows = np.zeros((4, 3), dtype=np.float32)
    with pytest.raises(UserError, match="not finite or not below"):
        nearest(np.where(np.arange(4)[:, None] == 2, np.float32(bad), rows), rows, "faiss")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", [0, 9000, 39_999])
def test_one_bad_row_among_many_is_named_wherever_it_is(backend: str, row: int) -> None:
    rows = np.ones((40_000, 8), dtype=np.float32)  # several pieces
    rows[row, 3] = np.nan
    with pytest.raises(UserError, match=f"row {row} are not finite"):
        NearestCentroid(backend).load(rows)


def test_unknown_and_missing_backends_are_named() -> None:
    with pytest.raises(UserError, match="Unknown k-means backend 'fais'"):
        make_backend("fais")
    with pytest.raises(UserError, match="'faiss-gpu' found no GPU"):
        make_backend("faiss-gpu")
    with pytest.raises(UserError, match=r"\(rows, features\)"):
        nearest(np.zeros(4, dtype=np.float32), np.zeros((1, 4), dtype=np.float32))


def test_the_compiled_pass_is_taken_where_it_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.telemetry.num_visible_gpus", lambda: 0)
    for built, taken in ((object(), "native"), (None, "numpy")):
        monkeypatch.setattr(index, "library", lambda built=built: built)
        assert automatic() == taken
