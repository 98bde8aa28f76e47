"""k-means against scikit-learn and a slow loop, and the properties that make it trustworthy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans

from cluster.errors import StaleMessage
from cluster.kmeans import KMeans, KMeansResult, KMeansShard, LocalShards, kmeans
from cluster.shard import Scale
from data_shards.errors import UserError


def blobs(num_rows: int, width: int, num_clusters: int, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_clusters, width))
    rows = centres[rng.integers(num_clusters, size=num_rows)] + spread * rng.standard_normal((num_rows, width))
    return rows.astype(np.float32)


def spread_over(rows: np.ndarray, num_shards: int, order: int, **fit: object) -> KMeansResult:
    """Put shuffled rows in random blocks on random shards, then fit."""
    rng = np.random.default_rng(order)
    shards = [KMeansShard() for _ in range(num_shards)]
    shuffled = rng.permutation(len(rows))
    for part in np.array_split(shuffled, int(rng.integers(1, 9))):
        shards[rng.integers(num_shards)].put(7, part, rows[part])
    return KMeans(LocalShards(shards)).fit(7, **fit)


def assert_same(a: KMeansResult, b: KMeansResult) -> None:
    for name, value in a.to_arrays().items():
        other = getattr(b, name)
        same = value.tobytes() == other.tobytes() if isinstance(value, np.ndarray) else value == other
        assert same or name == "version", name


@pytest.mark.parametrize(("num_rows", "width", "num_clusters"), [(500, 16, 5), (400, 64, 40), (90, 3, 8)])
def test_equals_sklearn_from_the_same_start(num_rows: int, width: int, num_clusters: int) -> None:
    rows = blobs(num_rows, width, num_clusters)
    start = rows[:num_clusters]
    ours = kmeans(rows, num_clusters, seed=0, initial=start)
    theirs = SklearnKMeans(num_clusters, init=start.astype(np.float64), n_init=1, algorithm="lloyd", tol=0)
    theirs.fit(rows.astype(np.float64))
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-6)
    assert ours.converged
    np.testing.assert_array_equal(ours.counts, np.bincount(theirs.labels_, minlength=num_clusters))


def test_empty_cluster_takes_the_farthest_row_like_sklearn() -> None:
    rows = blobs(60, 4, 3, spread=0.3)
    start = np.concatenate((rows[:2], np.full((2, 4), 100.0, dtype=np.float32)))
    start[3] += 5.0
    ours = kmeans(rows, 4, seed=0, initial=start)
    theirs = SklearnKMeans(4, init=start.astype(np.float64), n_init=1, algorithm="lloyd", tol=0)
    theirs.fit(rows.astype(np.float64))
    assert ours.num_empty_repaired >= 2
    assert ours.num_empty == 0
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-6)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [0, 1])
def test_every_sharding_and_put_order_gives_the_same_bytes(num_shards: int, order: int) -> None:
    rows = blobs(700, 24, 6, spread=1.5)
    rows[300:320] = rows[:20]  # equal rows: ties are decided by id
    fit = {"num_clusters": 9, "seed": 4, "num_reserves": 20}
    assert_same(spread_over(rows, num_shards, order, **fit), spread_over(rows, 1, 99, **fit))


def test_collapsed_embeddings_are_still_shard_independent() -> None:
    """All rows nearly equal, far from the origin: every float32 score is a near tie."""
    rows = (1.0 + 1e-6 * np.random.default_rng(0).standard_normal((300, 32))).astype(np.float32)
    fit = {"num_clusters": 4, "seed": 0}
    assert_same(spread_over(rows, 3, 0, **fit), spread_over(rows, 1, 5, **fit))


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 60),
    width=st.integers(1, 9),
    grid=st.integers(1, 4),
    num_shards=st.integers(1, 5),
    data=st.data(),
)
def test_any_small_problem_is_sound(num_rows: int, width: int, grid: int, num_shards: int, data: st.DataObject) -> None:
    num_clusters = data.draw(st.integers(1, num_rows))
    rows = np.random.default_rng(num_rows).integers(0, grid, (num_rows, width)).astype(np.float32)  # many ties
    result = kmeans(rows, num_clusters, seed=3, num_shards=num_shards)
    assert_same(result, kmeans(rows, num_clusters, seed=3))
    distances = ((rows[:, None].astype(np.float64) - result.centroids[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(result.labels, distances.argmin(axis=1))
    assert result.counts.sum() == num_rows
    assert result.num_empty == 0 or len(np.unique(rows, axis=0)) < num_clusters or not result.converged


def test_seeding_draws_in_proportion_to_squared_distance() -> None:
    """Rows at 0, 1 and 2 on a line: after the first centre at 0, the others have odds 1 : 4."""
    rows = np.array([[0.0], [1.0], [2.0]], dtype=np.float32)
    shard = KMeansShard()
    shard.put(0, [10, 11, 12], rows)
    winners = [shard.seed(0, key, rows[:1]) for key in range(3000)]
    ids = np.array([w.row_id for w in winners if w is not None])
    assert not np.any(ids == 10)
    assert np.mean(ids == 12) == pytest.approx(0.8, abs=0.03)
    first = np.array([w.row_id for w in (shard.seed(0, key, rows[:0]) for key in range(3000)) if w is not None])
    np.testing.assert_allclose(np.bincount(first - 10) / 3000, 1 / 3, atol=0.03)


def test_reserves_are_the_rows_that_lose_least() -> None:
    rows = blobs(120, 5, 3, spread=1.0)
    result = spread_over(rows, 3, 0, num_clusters=3, seed=0, num_reserves=10)
    distances = ((rows[:, None].astype(np.float64) - result.centroids[None]) ** 2).sum(axis=2)
    for k in range(3):
        loss = distances[:, k] - distances[np.arange(120), result.labels]
        expected = [i for i in np.argsort(loss, kind="stable") if result.labels[i] != k][:10]
        np.testing.assert_array_equal(result.reserves[k], expected)


def test_all_rows_equal_leaves_clusters_empty_and_says_so() -> None:
    result = kmeans(np.ones((20, 4), dtype=np.float32), 8, seed=0)
    assert result.num_empty == 7
    assert result.converged
    np.testing.assert_array_equal(result.labels, 0)
    assert result.inertia == 0.0


def test_as_many_clusters_as_rows() -> None:
    rows = blobs(12, 3, 4)
    result = kmeans(rows, 12, seed=1)
    assert sorted(result.labels) == list(range(12))
    assert result.inertia == 0.0
    np.testing.assert_allclose(result.centroids[result.labels], rows, atol=1e-6)


def test_too_few_rows_is_one_sentence() -> None:
    with pytest.raises(UserError, match="cannot make 5 clusters of 3 rows; use at most 3"):
        kmeans(np.zeros((3, 2), dtype=np.float32), 5, seed=0)
    with pytest.raises(UserError, match="of 0 rows"):
        kmeans(np.zeros((0, 2), dtype=np.float32), 1, seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20, 1e300])
def test_bad_values_are_refused_with_their_row(bad: float) -> None:
    rows = np.zeros((9, 3))
    rows[4, 1] = bad
    with pytest.raises(UserError, match="row 4"):
        kmeans(rows, 2, seed=0)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32])
def test_other_number_types_and_strides(kind: type) -> None:
    rows = (8 * blobs(80, 6, 4)).astype(kind)
    expected = kmeans(rows.astype(np.float32), 4, seed=0)
    assert_same(kmeans(np.asfortranarray(rows), 4, seed=0), expected)
    assert_same(kmeans(np.repeat(rows, 2, axis=0)[::2], 4, seed=0), expected)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_scale_of_the_features_does_not_matter(factor: float) -> None:
    rows = blobs(200, 8, 4)
    start = rows[:4]
    expected = kmeans(rows, 4, seed=0, initial=start)
    scaled = np.float32(2.0 ** round(np.log2(factor)))  # a power of two changes no mantissa
    result = kmeans(rows * scaled, 4, seed=0, initial=start * scaled)
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_allclose(result.centroids / scaled, expected.centroids, rtol=1e-6)


def test_fixed_point_cannot_overflow() -> None:
    for num_rows in (1, 2, 1000, 2**24 + 1, 10**9, 10**12):
        for largest in (1e-38, 0.999, 1.0, 1024.0, 9.9e14):
            scale = Scale.of(num_rows, largest)
            whole = float(scale.integers(np.array([largest]))[0])
            assert whole <= 2.0**39
            assert whole * num_rows <= 2.0**62
            assert whole * 1024 * 2 <= 2.0**53


def test_versions_are_kept_apart() -> None:
    shard = KMeansShard()
    rows = blobs(30, 4, 3)
    shard.put(5, np.arange(30), rows)
    with pytest.raises(StaleMessage, match="version 4"):
        shard.put(4, np.arange(30), rows)
    assert shard.summary(5).num_rows == 30
    assert shard.summary(6).num_rows == 0
    with pytest.raises(StaleMessage, match="Version 5"):
        shard.summary(5)


def test_rows_put_twice_and_widths_that_differ_are_refused() -> None:
    rows = blobs(30, 4, 3)
    shard = KMeansShard()
    shard.put(0, np.arange(30), rows)
    shard.put(0, np.arange(5), rows[:5])
    with pytest.raises(UserError, match="Row 0 was put twice"):
        KMeans(LocalShards([shard])).fit(0, 3, seed=0)
    with pytest.raises(UserError, match="3 wide"):
        shard.put(0, np.arange(5), rows[:5, :3])


def test_incremental_sums_equal_fresh_ones() -> None:
    rows = blobs(400, 10, 5, spread=1.0)
    used = KMeansShard()
    used.put(0, np.arange(400), rows)
    scale, norm = Scale.of(400, float(np.abs(rows).max())), used.summary(0).max_norm
    for start in (0, 40, 80, 7):
        centroids = rows[start : start + 6]
        fresh = KMeansShard()
        fresh.put(0, np.arange(400), rows)
        one, two = (shard.assign(0, centroids, scale, norm) for shard in (used, fresh))
        np.testing.assert_array_equal(one.sums, two.sums)
        np.testing.assert_array_equal(one.counts, two.counts)


def test_result_crosses_a_process_boundary_as_numbers_and_arrays() -> None:
    result = kmeans(blobs(40, 3, 2), 2, seed=0)
    arrays = result.to_arrays()
    assert all(isinstance(v, (int, float, bool, np.ndarray)) for v in arrays.values())
    assert_same(KMeansResult.from_arrays(arrays), result)
