"""Rankings against slow scans: of everything, of some subspaces, without a patient's images, among copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.vector_index import VectorIndex
from data_shards.catalogue import Catalogue
from launch.retrieval.gallery import Gallery, Want
from trainer.subspaces.partition import SubspacePartition

PARTITION = SubspacePartition((2, 3, 5))
NUM = 400


def unit(num: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((num, PARTITION.num_dims))
    return PARTITION.normalize(torch.from_numpy(values)).numpy().astype(np.float32)


def gallery_of(vectors: np.ndarray, kind: str = "exact") -> Gallery:
    texts = [np.full(len(vectors), "", dtype=object)] * 4
    images = Catalogue(np.arange(len(vectors)), np.zeros(len(vectors), np.int32), *texts, vectors)
    return Gallery(images, PARTITION, VectorIndex.build(kind, vectors))  # type: ignore[arg-type]


def scan(query: np.ndarray, vectors: np.ndarray, want: Want) -> tuple[list[int], list[float]]:
    """Blocks brought to unit length one by one, their mean squared distance, the first k that are not removed."""
    subspaces = want.subspaces or range(PARTITION.num_subspaces)
    squared = np.zeros(len(vectors))
    for k in subspaces:
        columns = PARTITION.slices[k]
        for row, vector in enumerate(vectors.astype(np.float64)):
            a, b = query[columns].astype(np.float64), vector[columns]
            squared[row] += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum() / len(subspaces)
    order = [int(row) for row in np.argsort(squared, kind="stable") if row not in want.removed][: want.k]
    return order, [float(np.sqrt(squared[row])) for row in order]


def test_exact_rankings_are_those_of_a_scan() -> None:
    vectors, queries = unit(NUM, 0), unit(6, 1)
    wants = [
        Want(10),
        Want(3, subspaces=(1,)),
        Want(NUM + 5),
        Want(7, removed=tuple(range(0, NUM, 2))),
        Want(5, removed=(3, 4), subspaces=(2, 0)),
        Want(4, removed=tuple(range(NUM))),
    ]
    for (rows, distances), query, want in zip(gallery_of(vectors).nearest(queries, wants), queries, wants, strict=True):
        expected_rows, expected = scan(query, vectors, want)
        assert rows.tolist() == expected_rows
        np.testing.assert_allclose(distances, expected, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_copies_come_in_the_order_of_rows(k: int) -> None:
    """Far more copies than a shortlist holds: the answer needs longer ones."""
    vectors = np.repeat(unit(3, 0), 100, axis=0)[np.random.default_rng(0).permutation(300)]
    for query in unit(3, 0):
        ((rows, distances),) = gallery_of(vectors).nearest(query[None], [Want(k)])
        copies = np.flatnonzero(np.abs(vectors - query).max(axis=1) < 1e-6)
        assert rows.tolist() == copies[:k].tolist()
        assert distances.max() < 1e-3


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_ones_give_true_distances_and_k_others(kind: str) -> None:
    vectors, queries = unit(NUM, 0), unit(20, 1)
    removed = tuple(range(0, NUM, 3))
    hits = 0
    for query in queries:
        ((rows, distances),) = gallery_of(vectors, kind).nearest(query[None], [Want(10, removed)])
        assert len(rows) == 10
        assert not set(rows.tolist()) & set(removed)
        np.testing.assert_allclose(distances, np.linalg.norm(vectors[rows] - query, axis=1), atol=1e-5)
        hits += len(set(rows.tolist()) & set(scan(query, vectors, Want(10, removed))[0]))
    assert hits > 0.8 * 200
    exact = gallery_of(vectors).nearest(queries[:1], [Want(10, subspaces=(0,))])[0][0]
    assert gallery_of(vectors, kind).nearest(queries[:1], [Want(10, subspaces=(0,))])[0][0].tolist() == exact.tolist()


def test_distances_by_subspace() -> None:
    vectors, (query,) = unit(50, 0), unit(1, 1)
    found = gallery_of(vectors).by_subspace(query, np.array([4, 9]))
    for i, row in enumerate((4, 9)):
        for k in range(3):
            _, (expected,) = scan(query, vectors[row : row + 1], Want(1, subspaces=(k,)))
            assert found[i, k] == pytest.approx(expected, abs=1e-5)
    assert (found**2).mean(axis=1) == pytest.approx(((vectors[[4, 9]] - query) ** 2).sum(axis=1), abs=1e-5)
