"""Exact neighbours: order, ties and groups, independent of the chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from trainer.metrics.neighbours import Space, group_codes, neighbours


def test_equal_scikit_learn_on_random_vectors() -> None:
    vectors = np.random.default_rng(0).standard_normal((83, 7)).astype(np.float32)
    distances, rows = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(vectors.astype(np.float64)).kneighbors()
    for chunk in (1, 10, 1000):
        found_rows, found_distances = neighbours(vectors, 5, chunk=chunk)
        assert np.array_equal(found_rows, rows)
        np.testing.assert_allclose(found_distances, distances, rtol=1e-6)
    assert np.array_equal(neighbours(torch.from_numpy(vectors), 5)[0], rows)


def test_ties_go_to_the_lower_row_for_every_chunk() -> None:
    """Many exact copies: the order must be that of the rows, though the last bits of a product may differ."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((4, 33)).astype(np.float32)
    which = rng.integers(0, 4, 300)
    vectors = centres[which] / np.linalg.norm(centres[which], axis=1, keepdims=True)
    for chunk in (1, 7, 64, 300):
        rows, distances = neighbours(vectors, 20, chunk=chunk)
        for i in range(300):
            copies = [j for j in np.flatnonzero(which == which[i]) if j != i]
            assert rows[i].tolist() == copies[:20]
        assert (distances < 1e-4).all()


def test_own_group_is_removed_and_missing_neighbours_are_padded() -> None:
    vectors = np.array([[0.0], [1.0], [2.0], [4.0]], dtype=np.float32)
    rows, distances = neighbours(vectors, 3, groups=np.array(["a", "a", "", ""]))
    assert rows.tolist() == [[2, 3, -1], [2, 3, -1], [1, 0, 3], [2, 1, 0]]
    assert distances.tolist() == [[2, 4, np.inf], [1, 3, np.inf], [1, 2, 2], [2, 3, 4]]


def test_more_neighbours_than_samples() -> None:
    rows, distances = neighbours(np.eye(2, dtype=np.float32), 4)
    assert rows.tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]]
    assert distances[:, 0] == pytest.approx(np.sqrt([2.0, 2.0]))


def test_the_opposite_of_the_longest_vector_is_the_farthest() -> None:
    """Its distance is the largest that there can be, and must not run over into the sign."""
    rows, distances = neighbours(np.array([[1.0], [-1.0], [0.5], [0.9]]), 3)
    assert rows.tolist() == [[3, 2, 1], [2, 3, 0], [3, 0, 1], [0, 2, 1]]
    assert distances[0] == pytest.approx([0.1, 0.5, 2.0])


def test_an_empty_group_name_is_no_group() -> None:
    codes = group_codes(np.array(["x", "", "y", "", "x"], dtype=object))
    assert len(set(codes.tolist())) == 4
    assert codes[0] == codes[4]


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        neighbours(np.array([[0.0], [np.nan]], dtype=np.float32), 1)


def test_another_gallery_equals_scikit_learn_and_ties_go_to_the_lower_row() -> None:
    rng = np.random.default_rng(2)
    gallery = rng.standard_normal((50, 6))
    gallery[25:] = gallery[:25]
    queries = np.concatenate([rng.standard_normal((20, 6)), gallery[:3]])
    space = Space(queries, gallery=gallery)
    for chunk in (1, 8, 1000):
        for part in space.chunks(chunk, 6):
            rows, squared = space.nearest(part, 6)
            exact = ((queries[part, None] - gallery[None]) ** 2).sum(axis=2)
            assert np.array_equal(rows, np.argsort(exact.round(9), axis=1, kind="stable")[:, :6])
            np.testing.assert_allclose(squared, np.take_along_axis(exact, rows, 1), atol=1e-8)
    assert not space.removed(np.arange(23)).any()  # a copy of a query in another gallery is a neighbour like any other
    assert space.nearest(np.arange(20, 23), 2)[0].tolist() == [[0, 25], [1, 26], [2, 27]]


def test_own_group_is_removed_from_another_gallery() -> None:
    space = Space(
        np.array([[0.0], [1.0]]), np.array(["a", ""]), np.array([[0.0], [2.0], [5.0]]), np.array(["a", "", "a"])
    )
    (part,) = space.chunks(9, 3)
    assert space.removed(part).tolist() == [[True, False, True], [False] * 3]
    assert space.nearest(part, 3)[0].tolist() == [[1, -1, -1], [0, 1, 2]]
    with pytest.raises(ValueError, match="together"):
        Space(np.eye(2), np.array(["a", "b"]), np.eye(2))


def test_other_vectors_of_the_queries_ask_the_same_gallery() -> None:
    space = Space(np.array([[0.0], [1.0], [4.0]]))
    moved = space.asking(torch.tensor([[4.0], [1.0], [0.0]]))
    (part,) = moved.chunks(9, 2)
    assert moved.nearest(part, 2)[0].tolist() == [[2, 1], [0, 2], [0, 1]]
    inside = moved.inside()
    assert inside.quantum == moved.quantum
    assert inside.nearest(part, 2)[0].tolist() == [[1, 2], [0, 2], [1, 0]]
