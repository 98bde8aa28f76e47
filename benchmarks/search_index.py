"""The indexes of `subspace search` against a scan by numpy: recall@10, time per query, bytes, time to build.

    python benchmarks/search_index.py [OUT] [--sizes 10000 50000 200000] [--vectors FILE.safetensors]

Clustered vectors of length 1, queries from the same clusters, asked one at a time as the service does, one thread;
and vectors without any clusters, the worst that an approximate index can meet.
What is counted is what `subspace search` answers: a shortlist of the index, in the order of float64 distances. The
truth is a scan of all in float64. `--vectors` adds the embeddings of a real run (RUN/evaluation/SPLIT.safetensors).

Legend: M indexed vectors, n queries, D width.
"""

from __future__ import annotations

from benchmarks.timing import compared, interleaved, write  # first: it limits threads

# isort: split

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from safetensors.numpy import load_file

from cluster.vector_index import Kind, VectorIndex, set_threads

WIDTH, NUM_QUERIES, NEIGHBOURS, SHORTLIST, PER_CLUSTER = 64, 100, 10, 40, 200
SPREAD = 0.5  # of a cluster, where centres are 1 apart in every dimension
KINDS: tuple[Kind, ...] = ("exact", "ivf", "hnsw")


def drawn_vectors(num_vectors: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (M, D) vectors and (n, D) queries of length 1 around common centres; without centres if spread is inf."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, num_vectors // PER_CLUSTER), WIDTH))
    noise = rng.standard_normal((num_vectors + NUM_QUERIES, WIDTH))
    drawn = noise if spread == np.inf else centres[rng.integers(len(centres), size=len(noise))] + spread * noise
    found = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return found[:num_vectors], found[num_vectors:]


def nearest(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the nearest of `rows` by float64 distances, ties to the lower row."""
    distances = ((vectors[rows].astype(np.float64) - query.astype(np.float64)) ** 2).sum(axis=1)
    return rows[np.lexsort((rows, distances))[:NEIGHBOURS]]


def answers(index: VectorIndex, vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return (n, 10) rows as a search answers them."""
    found = []
    for query in queries:
        rows = index.shortlist(query[None], SHORTLIST)[0][0]
        found.append(nearest(vectors, query, np.sort(rows[rows >= 0])))
    return np.stack(found)


def scan(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return (n, 10) rows by numpy alone: float32 inner products, the best shortlist, float64 order."""
    found = []
    for query in queries:
        rows = np.argpartition(-(vectors @ query), SHORTLIST)[:SHORTLIST]
        found.append(nearest(vectors, query, np.sort(rows)))
    return np.stack(found)


def case(vectors: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """Return the figures of one collection of vectors."""
    everything = np.arange(len(vectors))
    truth = np.stack([nearest(vectors, query, everything) for query in queries])
    indexes, built = {}, {}
    for kind in KINDS:
        began = time.perf_counter()
        indexes[kind] = VectorIndex.build(kind, vectors)
        built[kind] = round(time.perf_counter() - began, 3)
    ways: dict[str, Callable[[], Any]] = {k: lambda i=i: answers(i, vectors, queries) for k, i in indexes.items()}
    ways["numpy"] = lambda: scan(vectors, queries)
    given = {name: way() for name, way in ways.items()}
    timed = compared(interleaved(ways), ours="exact")
    return {
        "vectors": len(vectors),
        "width": int(vectors.shape[1]),
        "queries": len(queries),
        "equal_to_float64_scan": {name: bool((rows == truth).all()) for name, rows in given.items()},
        "recall_at_10": {name: recall(rows, truth) for name, rows in given.items()},
        "built_s": built,
        "bytes": {kind: len(index.to_bytes()) for kind, index in indexes.items()},
        "ms_per_query": {name: round(1000 * s / len(queries), 3) for name, s in timed["median_s"].items()},
        "times_exact": timed["times_ours"],
    }


def recall(rows: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of the true ten that were found."""
    return round(float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(rows, truth, strict=True)])) / NEIGHBOURS, 4)


def real(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings of a run's split, every tenth (100 at most) as a query and not among the indexed."""
    vectors = load_file(path)["vectors"].astype(np.float32)
    asked = np.zeros(len(vectors), dtype=bool)
    asked[::10][:NUM_QUERIES] = True
    return vectors[~asked], vectors[asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--vectors", type=Path)
    given = parser.parse_args()
    set_threads(1)
    assert faiss.omp_get_max_threads() == 1
    found = {f"clustered {size}": case(*drawn_vectors(size, SPREAD)) for size in given.sizes}
    found["without clusters"] = case(*drawn_vectors(given.sizes[0], np.inf))
    if given.vectors is not None:
        found["real"] = case(*real(given.vectors))
    write(given.out, {"shortlist": SHORTLIST, "cases": found})


if __name__ == "__main__":
    main()
