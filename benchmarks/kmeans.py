"""Our exact k-means against scikit-learn and faiss: the same work, interleaved, medians, one thread.

    python benchmarks/kmeans.py [--repeats 5]

Prints one JSON line per case; ratios travel, seconds do not.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy is imported

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from sklearn.cluster import KMeans

from cluster.index import BackendName
from cluster.kmeans import kmeans

SEEDS = 10


def unit_rows(num_rows: int, width: int, num_clusters: int) -> np.ndarray:
    """Return noisy clusters on the sphere, (N, F) float32."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((num_clusters, width))
    x = centres[rng.integers(num_clusters, size=num_rows)] + 1.5 * rng.standard_normal((num_rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def medians(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each way, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def told(case: str, found: dict[str, float]) -> None:
    """Print a case with the ratio of ours to each other way."""
    ratios = {f"ours/{name}": round(found["ours"] / value, 2) for name, value in found.items() if name != "ours"}
    print(json.dumps({"case": case, "seconds": {name: round(v, 4) for name, v in found.items()}, **ratios}), flush=True)


def evaluation(num_rows: int, num_clusters: int, repeats: int) -> None:
    """The k-means behind NMI: ten seeds, seeding included."""
    x = unit_rows(num_rows, 128, num_clusters)

    def sklearn() -> None:
        for seed in range(SEEDS):
            KMeans(num_clusters, n_init=1, random_state=seed, max_iter=100, tol=0).fit(x)

    def ours() -> None:
        for seed in range(SEEDS):
            kmeans(x, num_clusters, seed, backend="numpy")

    ways = {"ours": ours, "sklearn": sklearn}
    told(f"evaluation, {num_rows} x 128, K={num_clusters}, {SEEDS} seeds", medians(ways, repeats))


def lloyd(num_rows: int, width: int, num_clusters: int, repeats: int) -> None:
    """Twenty iterations over all points from the same start; the labels must agree with scikit-learn's."""
    x = unit_rows(num_rows, width, num_clusters)
    start = x[:num_clusters].copy()

    def ours(backend: BackendName) -> Any:
        return kmeans(x, num_clusters, 0, num_iterations=20, initial=start, backend=backend)

    def sklearn() -> Any:
        return KMeans(num_clusters, init=start, n_init=1, max_iter=20, tol=0).fit(x)

    def with_faiss() -> None:
        found = faiss.Kmeans(width, num_clusters, niter=20, max_points_per_centroid=10**7)
        found.train(x, init_centroids=start)
        found.index.search(x, 1)

    agree = float(np.mean(ours("faiss").labels == sklearn().labels_))
    case = f"Lloyd, {num_rows} x {width}, K={num_clusters}, 20 iterations, labels equal to sklearn {agree:.6f}"
    screens = {"ours": lambda: ours("faiss"), "ours with numpy's screen": lambda: ours("numpy")}
    told(case, medians({**screens, "sklearn": sklearn, "faiss": with_faiss}, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    faiss.omp_set_num_threads(1)
    evaluation(3520, 176, repeats)
    evaluation(719, 7, repeats)
    for num_rows, width, num_clusters in ((50_000, 128, 10), (50_000, 512, 10), (50_000, 128, 64)):
        lloyd(num_rows, width, num_clusters, repeats)


if __name__ == "__main__":
    main()
