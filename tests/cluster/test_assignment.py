"""Alignment and repair of clusters: spec section 10, checks 3 and 6, and the published faults B3 to B6."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from cluster import assignment as assignment_module
from cluster.assignment import Assignment, RepairRule, contingency, from_clusters, overlap
from cluster.kmeans import kmeans
from data_shards.errors import UserError


def stable(num_subspaces: int, rows: int = 50, version: int = 0) -> Assignment:
    return Assignment(np.arange(num_subspaces * rows) % num_subspaces, version, num_subspaces)


def renamed(assignment: Assignment, names: tuple[int, ...], num_subspaces: int | None = None) -> Assignment:
    return Assignment(np.array(names)[assignment.labels], assignment.version + 1, num_subspaces or len(names))


@pytest.mark.parametrize("num_subspaces", [2, 3, 4])
def test_every_permutation_of_stable_clusters_is_undone(num_subspaces: int) -> None:
    """The released code applied the inverse: right for involutions, wrong for every 3-cycle (B3)."""
    previous = stable(num_subspaces)
    for names in itertools.permutations(range(num_subspaces)):
        aligned = renamed(previous, names).aligned_to(previous)
        np.testing.assert_array_equal(aligned.labels, previous.labels)
        assert aligned.version == 1


def test_three_cycle_is_undone_completely() -> None:
    previous = stable(3)
    aligned = renamed(previous, (1, 2, 0)).aligned_to(previous)
    assert np.mean(aligned.labels == previous.labels) == 1.0


@pytest.mark.parametrize("split", [0, 1, 2])
@pytest.mark.parametrize("names", list(itertools.permutations(range(4)))[::5])
def test_cluster_without_a_partner_goes_to_the_new_tail(split: int, names: tuple[int, ...]) -> None:
    """After growth, K_old + 1 clusters meet K_old ids; the released code dropped whichever came last (B4)."""
    previous = stable(3)
    raw = previous.labels.copy()
    members = np.flatnonzero(raw == split)
    raw[members[: len(members) // 3]] = 3  # the smaller part is the new cluster
    current = Assignment(np.array(names)[raw], 1, 4)
    aligned = current.aligned_to(previous, num_subspaces=4)
    np.testing.assert_array_equal(aligned.labels, raw)
    elsewhere = current.aligned_to(previous, num_subspaces=4, new_tail=3)
    np.testing.assert_array_equal(elsewhere.labels, raw)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2), st.integers(0, 10**6))
def test_alignment_keeps_as_many_rows_as_any_renaming(num_old: int, extra: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_new = num_old + extra
    previous = Assignment(rng.integers(-1, num_old, 40), 0, num_old)
    current = Assignment(rng.integers(-1, num_new, 40), 1, num_new)
    aligned = current.aligned_to(previous, num_new)

    def kept(labels: np.ndarray) -> int:
        return int(np.count_nonzero((labels == previous.labels) & (previous.labels >= 0)))

    best = max(
        kept(np.where(current.labels < 0, -1, np.array(names)[current.labels]))
        for names in itertools.permutations(range(num_new))
    )
    assert kept(aligned.labels) == best
    assert normalized_mutual_info_score(aligned.labels, current.labels) == pytest.approx(1.0)


def test_rows_left_out_do_not_vote() -> None:
    previous = Assignment([0, 0, 1, 1, -1, -1, -1], 0, 2)
    current = Assignment([1, 1, 0, 0, 0, 1, -1], 1, 2)
    np.testing.assert_array_equal(contingency(current, previous), [[0, 2], [2, 0]])
    np.testing.assert_array_equal(current.aligned_to(previous).labels, [0, 0, 1, 1, 1, 0, -1])


def test_nmi_is_that_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    a, b = Assignment(rng.integers(0, 4, 300), 0, 4), Assignment(rng.integers(0, 6, 300), 1, 6)
    assert b.nmi_to(a) == pytest.approx(normalized_mutual_info_score(a.labels, b.labels))
    assert a.nmi_to(a) == pytest.approx(1.0)
    assert Assignment.single(5).nmi_to(Assignment.single(5)) == 1.0


def test_hash_tells_labels_version_and_number() -> None:
    one = Assignment([0, 1, -1], 3, 2)
    assert one == Assignment(np.array([0, 1, -1], dtype=np.int64), 3, 2)
    expected = hashlib.sha256(b"assignment 3 2 3 " + np.array([0, 1, -1], dtype="<i4").tobytes()).hexdigest()
    assert one.hash == expected
    others = [Assignment([0, 1, 0], 3, 2), Assignment([0, 1, -1], 4, 2), Assignment([0, 1, -1], 3, 3)]
    assert len({a.hash for a in [one, *others]}) == 4
    with pytest.raises(ValueError, match="read-only"):
        one.labels[0] = 1


@pytest.mark.parametrize(("num_subspaces", "kind"), [(2, np.int8), (128, np.int32)])
def test_labels_of_many_rows_are_narrow_and_mean_the_same(
    num_subspaces: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    wide = [Assignment(rng.integers(-1, num_subspaces, 300), version, num_subspaces) for version in range(2)]
    monkeypatch.setattr(assignment_module, "LONG", 300)
    narrow = [Assignment(each.labels, each.version, num_subspaces) for each in wide]
    assert {each.labels.dtype for each in narrow} == {np.dtype(kind)}
    np.testing.assert_array_equal(narrow[1].labels, wide[1].labels)
    np.testing.assert_array_equal(narrow[1].counts, wide[1].counts)
    np.testing.assert_array_equal(contingency(narrow[1], wide[0]), contingency(wide[1], wide[0]))
    np.testing.assert_array_equal(narrow[1].aligned_to(narrow[0]).labels, wide[1].aligned_to(wide[0]).labels)
    with pytest.raises(UserError, match="found others"):
        Assignment(np.full(300, 256 + num_subspaces - 1), 0, num_subspaces)  # which int8 would wrap


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match=r"-1\.\.1"):
        Assignment([0, 2], 0, 2)
    with pytest.raises(UserError, match="cannot be compared"):
        contingency(Assignment.single(3), Assignment.single(4))


def two_lines(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters along a line: features (S, 1), labels, centroids."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(0)
    features = (10.0 * labels + rng.random(len(labels)))[:, None].astype(np.float32)
    centroids = np.array([features[labels == k].mean(axis=0) for k in range(len(sizes))], dtype=np.float32)
    return features, labels, centroids


def reserves_of(features: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    distances = ((features[:, None] - centroids[None]) ** 2).sum(axis=2)
    out = np.full((len(centroids), len(features)), -1, dtype=np.int64)
    for k in range(len(centroids)):
        loss = distances[:, k] - distances[np.arange(len(labels)), labels]
        order = [i for i in np.argsort(loss, kind="stable") if labels[i] != k]
        out[k, : len(order)] = order
    return out


def classes_with_two(labels: np.ndarray, classes: np.ndarray, k: int) -> int:
    return int(np.count_nonzero(np.bincount(classes[labels == k]) >= 2))


def test_small_cluster_is_filled_with_the_nearest_rows() -> None:
    features, labels, centroids = two_lines((40, 3, 40))
    classes = np.arange(len(labels)) % 4
    before = Assignment(labels, 0, 3)
    reserves = reserves_of(features, labels, centroids)
    after = before.repaired(RepairRule(min_size=10, min_classes=2), classes, centroids, reserves)
    np.testing.assert_array_equal(after.counts.sum(), 83)
    assert after.counts[1] == 10
    moved = np.flatnonzero(after.labels != labels)
    np.testing.assert_array_equal(sorted(moved), sorted(reserves[1][:7]))


def test_pure_cluster_gets_its_negatives_instead_of_dying() -> None:
    features, labels, centroids = two_lines((30, 30, 30))
    classes = labels.copy()  # perfect clustering: every cluster has one class
    reserves = reserves_of(features, labels, centroids)
    after = Assignment(labels, 0, 3).repaired(RepairRule(4, 2), classes, centroids, reserves)
    for k in range(3):
        assert classes_with_two(after.labels, classes, k) >= 2
        assert after.counts[k] >= 4
    assert np.mean(after.labels == labels) > 0.9


def test_without_reserves_a_deficient_cluster_is_merged_into_the_nearest() -> None:
    labels = np.repeat([0, 1, 2, 3], (40, 3, 40, 20))
    centroids = np.array([[0.0], [4.0], [10.0], [13.0]], dtype=np.float32)
    classes = np.arange(len(labels)) % 2
    classes[labels == 3] = 1  # large, but of one class
    after = Assignment(labels, 0, 4).repaired(RepairRule(10, 2), classes, centroids)
    np.testing.assert_array_equal(after.labels, np.array([0, 0, 2, 2])[labels])
    np.testing.assert_array_equal(after.counts, [43, 0, 60, 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 60), st.integers(0, 10**6), st.booleans())
def test_repair_leaves_only_trainable_or_empty_clusters(
    num_subspaces: int, num_classes: int, num_rows: int, seed: int, with_reserves: bool
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, num_subspaces, num_rows)
    classes = rng.integers(0, num_classes, num_rows)
    features = rng.standard_normal((num_rows, 2)).astype(np.float32)
    centroids = rng.standard_normal((num_subspaces, 2)).astype(np.float32)
    reserves = np.stack([rng.permutation(num_rows) for _ in range(num_subspaces)]) if with_reserves else None
    rule = RepairRule(5, 2)
    after = Assignment(labels, 0, num_subspaces).repaired(rule, classes, centroids, reserves)
    np.testing.assert_array_equal(after.labels < 0, labels < 0)
    filled = np.flatnonzero(after.counts)
    for k in filled:
        sound = after.counts[k] >= 5 and classes_with_two(after.labels, classes, k) >= 2
        assert sound or len(filled) == 1
    assert len(features) == num_rows


@pytest.mark.parametrize("rows", [60, 50])
@pytest.mark.parametrize("min_size", [2, 12])
def test_what_is_told_of_clusters_is_that_of_their_labels(rows: int, min_size: int) -> None:
    rng = np.random.default_rng(1)
    result = kmeans(rng.standard_normal((rows, 2)).astype(np.float32), 6, 0)
    ids = np.sort(rng.permutation(60)[:rows])
    result = replace(result, row_ids=ids)
    previous = Assignment(rng.integers(-1, 4, 60), 0, 4)
    classes = rng.integers(0, 3, 60)
    found = from_clusters(result, 60, 7, previous, classes, RepairRule(min_size, 2))
    shared = sum(overlap(result, 60, previous, slice(start, start + 20)) for start in (0, 20, 40))
    again = from_clusters(result, 60, 7, previous, classes, RepairRule(min_size, 2), total=shared)
    assert again == found
    assert set(np.flatnonzero(found.labels >= 0)) == set(ids)
    fresh = Assignment(found.labels, 1, 7)
    np.testing.assert_array_equal(contingency(found, previous), contingency(fresh, previous))
    np.testing.assert_array_equal(found.counts, np.bincount(found.labels[ids], minlength=7))
    assert found.nmi_to(previous) == fresh.nmi_to(previous)


def test_from_clusters_aligns_before_it_repairs() -> None:
    rng = np.random.default_rng(0)
    centres = 10.0 * np.eye(4)
    truth = np.repeat(np.arange(4), (40, 40, 40, 3))
    rows = (centres[truth] + 0.1 * rng.standard_normal((123, 4))).astype(np.float32)
    classes = np.arange(123) % 3
    previous = Assignment(np.minimum(truth, 2), 0, 3)
    for seed in range(5):
        start = rows[rng.permutation([0, 40, 80, 120])]
        result = kmeans(rows, 4, seed, initial=start)
        plain = from_clusters(result, 123, 4, previous)
        np.testing.assert_array_equal(plain.labels, truth)
        merged = from_clusters(result, 123, 4, previous, classes, RepairRule(10, 2))
        assert merged.counts[3] == 0
        assert merged.num_subspaces == 4
