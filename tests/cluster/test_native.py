"""The compiled pass against slow loops: labels, sums, bounds and distances, with tiles, without, and in threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import native
from cluster.backend import Block, exact_distances
from cluster.bounds import Bounds, Drift
from cluster.index import row_norm_bound
from cluster.native import NativeBackend
from cluster.sums import Partial, Scale
from data_shards.errors import UserError
from tests.cluster.test_bounds import KINDS, made, moved

pytestmark = pytest.mark.skipif(native.library() is None, reason="needs a processor with AVX-512 and a compiler")
SCREENS = [False, *([True] if native.library() is not None and native.has_tiles() else [])]


def nothing(num_centroids: int, width: int) -> Partial:
    return Partial(np.zeros((num_centroids, width), dtype=np.int64), np.zeros(num_centroids, dtype=np.int64))


def passes(
    rows: np.ndarray, start: np.ndarray, backend: NativeBackend, prune: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield centroids, labels, sums and counts of five iterations."""
    block, centroids, partial = Block(rows, backend.load(rows)), start, nothing(*start.shape)
    scale = Scale.of(len(rows), block.loaded.max_abs)
    if prune:
        block.bounds = Bounds(block.loaded.norms, block.loaded.reference, len(start))
    for _ in range(5):
        backend.prepare(centroids, block.loaded.max_norm)
        backend.relabel(block, partial, scale.shift)
        assert block.labels is not None
        yield centroids, block.labels.copy(), partial.sums.copy(), partial.counts.copy()
        means = moved(centroids, partial.sums, partial.counts, scale)
        if block.bounds is not None:
            block.bounds.move(Drift.between(centroids, means))
        centroids = means


@pytest.mark.parametrize("tiles", SCREENS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(KINDS),
    num_rows=st.integers(1, 150),
    width=st.integers(1, 70),
    num_centroids=st.integers(1, 40),
    prune=st.booleans(),
)
def test_labels_and_sums_are_those_of_a_slow_loop(
    tiles: bool, kind: str, num_rows: int, width: int, num_centroids: int, prune: bool
) -> None:
    rows = made(kind, num_rows, width, num_rows)
    start = rows[np.arange(num_centroids) % num_rows]
    scale = Scale.of(num_rows, float(np.abs(rows).max()))
    for centroids, labels, sums, counts in passes(rows, start, NativeBackend(tiles=tiles), prune):
        distances = [exact_distances(rows, np.broadcast_to(c, rows.shape)) for c in centroids]
        np.testing.assert_array_equal(labels, np.argmin(distances, axis=0))
        expected = nothing(num_centroids, width)
        np.add.at(expected.sums, labels, scale.integers(rows).astype(np.int64))
        np.testing.assert_array_equal(sums, expected.sums)
        np.testing.assert_array_equal(counts, np.bincount(labels, minlength=num_centroids))


@pytest.mark.parametrize("tiles", SCREENS)
def test_threads_change_nothing(tiles: bool) -> None:
    rows = made("normal", 40_000, 24, 3)
    one, three = (passes(rows, rows[:7], NativeBackend(threads, tiles), True) for threads in (1, 3))
    for a, b in zip(one, three, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("tiles", SCREENS)
def test_rows_that_are_safe_are_not_looked_at(tiles: bool) -> None:
    """A label that is wrong, with room left, stays: the pass believed its bound."""
    rows = made("normal", 100, 6, 0)
    backend = NativeBackend(tiles=tiles)
    block = Block(rows, backend.load(rows))
    block.bounds = Bounds(block.loaded.norms, block.loaded.reference, 2)
    backend.prepare(rows[:2], row_norm_bound(rows))
    backend.relabel(block, None, 0)
    assert block.labels is not None
    right = block.labels.copy()
    block.labels[:] = 1 - right
    block.bounds.room[:] = np.where(np.arange(100) % 2, -np.inf, 1.0)
    backend.relabel(block, None, 0)
    np.testing.assert_array_equal(block.labels == right, np.arange(100) % 2 == 1)


@pytest.mark.parametrize("width", [1, 3, 8, 15, 64, 515])
def test_distances_are_the_same_bits_as_those_of_numpy(width: int) -> None:
    rng = np.random.default_rng(width)
    rows, centroids = rng.standard_normal((60, width), dtype=np.float32), rng.standard_normal((5, width), np.float32)
    labels = rng.integers(5, size=60).astype(np.int32)
    backend = NativeBackend()
    np.testing.assert_array_equal(backend.distances(rows, centroids, labels), exact_distances(rows, centroids[labels]))
    np.testing.assert_array_equal(backend.distances(rows, centroids[:1], None), exact_distances(rows, centroids[:1]))


@pytest.mark.parametrize("tiles", SCREENS)
def test_what_is_loaded_is_measured(tiles: bool) -> None:
    rows = made("far", 90, 37, 0)
    loaded = NativeBackend(tiles=tiles).load(rows)
    wide = rows.astype(np.float64)
    assert loaded.max_abs == np.abs(rows).max()
    assert np.linalg.norm(wide, axis=1).max() <= loaded.max_norm < 1.0001 * np.linalg.norm(wide, axis=1).max()
    lengths = np.linalg.norm(wide - loaded.reference, axis=1)
    assert np.all((lengths <= loaded.norms) & (loaded.norms < 1.001 * lengths + 1e-4))
    assert 0.0 < loaded.lost < 2.0**-7 if tiles else loaded.lost == 0.0


def test_halves_are_rounded_to_even_like_numpy() -> None:
    rows = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 3.0, 0.25, 0.75, -2.5]], dtype=np.float32)
    backend, partial = NativeBackend(), nothing(1, 9)
    backend.prepare(rows, row_norm_bound(rows))
    backend.relabel(Block(rows, backend.load(rows)), partial, 0)
    np.testing.assert_array_equal(partial.sums[0], np.rint(rows[0]))


def test_without_the_library_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(UserError, match=r"needs a processor with AVX-512, and g\+\+"):
        NativeBackend()
