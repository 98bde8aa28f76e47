"""Shortlists of faiss: exact ones against a scan, approximate ones by recall, and what is not taken for an index."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from cluster.vector_index import Kind, VectorIndex, kind_for, tolerance
from data_shards.errors import DataIntegrityError

NUM, DIMS = 3000, 24
ROOT = Path(__file__).parents[2]


def clustered(num: int, seed: int) -> np.ndarray:
    """Unit vectors around 30 centres, as a trained embedding has them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((30, DIMS))
    vectors = centres[rng.integers(0, 30, num)] + 0.5 * rng.standard_normal((num, DIMS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def squared(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return ((queries[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2)


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_the_shortlist_holds_the_nearest(kind: Kind) -> None:
    vectors, queries = clustered(NUM, 0), clustered(50, 1)
    true = squared(queries, vectors)
    index = VectorIndex.build(kind, vectors)
    assert len(index) == NUM
    assert index.num_dims == DIMS
    rows, _ = index.shortlist(queries, 40)
    nearest = np.argsort(true, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), nearest.tolist(), strict=True)])
    assert recall == 1 if kind == "exact" else recall > 0.9
    again = VectorIndex.from_bytes(kind, index.to_bytes(), NUM, DIMS)
    assert np.array_equal(again.shortlist(queries, 40)[0], rows)


def test_exact_distances_are_within_the_tolerance() -> None:
    vectors, queries = clustered(NUM, 0), clustered(50, 1)
    rows, distances = VectorIndex.build("exact", vectors).shortlist(queries, NUM + 5)
    assert rows.shape == (50, NUM)
    true = np.take_along_axis(squared(queries, vectors), rows, axis=1)
    assert np.abs(distances - true).max() < tolerance(DIMS) < 1e-3


def test_another_index_is_refused() -> None:
    vectors = clustered(200, 0)
    data = VectorIndex.build("ivf", vectors).to_bytes()
    for kind, num, dims in (("hnsw", 200, DIMS), ("ivf", 201, DIMS), ("ivf", 200, DIMS + 1)):
        with pytest.raises(DataIntegrityError, match="not one of"):
            VectorIndex.from_bytes(kind, data, num, dims)  # type: ignore[arg-type]
    for damaged in (b"", data[: len(data) // 2], b"\0" * 64):
        with pytest.raises(DataIntegrityError):
            VectorIndex.from_bytes("ivf", damaged, 200, DIMS)


def test_few_images_are_scanned_and_many_are_not() -> None:
    assert [kind_for(num) for num in (1, 100_000, 100_001)] == ["exact", "exact", "ivf"]


def test_it_searches_where_another_library_has_replaced_the_search() -> None:
    """pytorch-metric-learning's inference imports faiss.contrib.torch_utils, for the whole process."""
    code = """
        import faiss.contrib.torch_utils
        import numpy as np
        from cluster.vector_index import VectorIndex
        vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
        for kind in ("exact", "ivf", "hnsw"):
            print((VectorIndex.build(kind, vectors).shortlist(vectors, 3)[0][:, 0] == np.arange(500)).mean() > 0.9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True"] * 3, done.stderr
