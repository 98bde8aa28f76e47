"""Our exact k-means against scikit-learn, faiss and torch: the same start, all points, 20 iterations, one thread.

    python benchmarks/kmeans.py [OUT.json] [--quick] [--repeats 5]

On rows with cluster structure and on rows without any, where bounds save next to nothing. Ours includes checks, the
copy in bfloat16 and the exact inertia, the others what they do by themselves. `floor` is the larger of reading all rows
and of all multiplications in float32, at the rates measured here; points too long for 20 iterations take 5,
on rows without structure only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.timing import compared, interleaved, write  # isort: skip  # before numpy: it limits the threads

import faiss
import numpy as np
import torch
from sklearn.cluster import KMeans

from cluster.kmeans import kmeans

SEEDS = 10
CENTRES = 20
LONG = 2e9  # N x D x K from which on a point takes 5 iterations, and only on rows without structure
QUICK = ((50_000, 128, 4), (50_000, 128, 10), (50_000, 1024, 10), (50_000, 128, 256))


def grid() -> Iterator[tuple[int, int, int]]:
    """Yield every (N, D, K)."""
    for num_rows in (50_000, 250_000, 1_000_000):
        for width in (128, 1024):
            for num_clusters in (2, 4, 10, 64, 256):
                yield num_rows, width, num_clusters


def unit_rows(num_rows: int, width: int, num_centres: int) -> np.ndarray:
    """Return (N, D) float32 unit rows around so many centres, 0 for none."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, width), dtype=np.float32)
    if num_centres:
        centres = rng.standard_normal((num_centres, width), dtype=np.float32)
        x *= 1.5
        x += centres[rng.integers(num_centres, size=num_rows)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def torch_lloyd(rows: torch.Tensor, start: np.ndarray, iterations: int) -> np.ndarray:
    """Return the labels of Lloyd as one would write it well: chunks, the product transposed for few centroids."""
    centroids, num = torch.from_numpy(start.copy()), len(start)
    labels = torch.empty(len(rows), dtype=torch.int64)
    for turn in range(iterations + 1):
        half = 0.5 * (centroids * centroids).sum(dim=1)
        sums, counts = torch.zeros_like(centroids), torch.zeros(num)
        for first in range(0, len(rows), 8192):
            part = rows[first : first + 8192]
            if num <= 16:
                found = torch.addmm(half[:, None], centroids, part.T, alpha=-1).argmin(dim=0)
            else:
                found = torch.addmm(half, part, centroids.T, alpha=-1).argmin(dim=1)
            labels[first : first + 8192] = found
            if turn < iterations:
                sums.index_add_(0, found, part)
                counts += torch.bincount(found, minlength=num)
        if turn < iterations:
            centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
    return labels.numpy()


def rates() -> dict[str, float]:
    """Return what one core reads and multiplies here: bytes/s of a sum over 512 MB, flop/s of float32 products."""
    x, a = torch.ones(1 << 27), torch.rand(1024, 1024)
    found = {}
    for name, work, way in (("bytes", 4 * x.numel(), x.sum), ("flops", 2 * 1024**3, lambda: a @ a)):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - began)
        found[f"{name}_per_s"] = work / min(seconds)
    return found


def lloyd(
    num_rows: int, width: int, num_clusters: int, centres: int, repeats: int, rate: dict[str, float]
) -> dict[str, Any]:
    """Compare one point of the grid."""
    x = unit_rows(num_rows, width, centres)
    start, rows = x[:num_clusters].copy(), torch.from_numpy(x)
    iterations = 20 if num_rows * width * num_clusters < LONG else 5
    last: dict[str, Any] = {}

    def ours() -> None:
        last["ours"] = kmeans(x, num_clusters, 0, num_iterations=iterations, initial=start)

    def sklearn(algorithm: str) -> Callable[[], None]:
        def run() -> None:
            model = KMeans(num_clusters, init=start, n_init=1, max_iter=iterations, tol=0, algorithm=algorithm)
            last[algorithm] = model.fit(x)

        return run

    def with_faiss() -> None:
        found = faiss.Kmeans(width, num_clusters, niter=iterations, max_points_per_centroid=10**9)
        found.train(x, init_centroids=start)
        last["faiss"] = found.index.search(x, 1)[1][:, 0]

    def with_torch() -> None:
        last["torch"] = torch_lloyd(rows, start, iterations)

    ways = {"ours": ours, "sklearn": sklearn("lloyd"), "faiss": with_faiss, "torch": with_torch}
    if num_rows * num_clusters <= 2e6:  # Elkan keeps a bound per row and centroid, and is never the fastest
        ways["sklearn elkan"] = sklearn("elkan")
    seconds = interleaved(ways, repeats)
    found = compared(seconds, "ours")
    mine, theirs = last["ours"], last["lloyd"]
    best = min(value for name, value in found["median_s"].items() if name != "ours")
    passes = mine.iterations + 1
    floor = passes * max(x.nbytes / rate["bytes_per_s"], 2.0 * x.size * num_clusters / rate["flops_per_s"])
    equal = {"sklearn": theirs.labels_, "faiss": last["faiss"], "torch": last["torch"]}
    return {
        "rows": num_rows,
        "width": width,
        "clusters": num_clusters,
        "structure": "clusters" if centres else "none",
        "iterations": iterations,
        "iterations_ours": mine.iterations,
        **found,
        "best_other_over_ours": round(best / found["median_s"]["ours"], 3),
        "floor_over_ours": round(floor / found["median_s"]["ours"], 3),
        "labels_equal": {name: round(float(np.mean(mine.labels == labels)), 6) for name, labels in equal.items()},
        "sklearn_inertia_over_ours": round(float(theirs.inertia_ / mine.inertia), 8),
    }


def evaluation(num_rows: int, num_clusters: int, repeats: int) -> dict[str, Any]:
    """Compare the k-means behind NMI: ten seeds, seeding included."""
    x = unit_rows(num_rows, 128, num_clusters)

    def sklearn() -> None:
        for seed in range(SEEDS):
            KMeans(num_clusters, n_init=1, random_state=seed, max_iter=100, tol=0).fit(x)

    def ours() -> None:
        for seed in range(SEEDS):
            kmeans(x, num_clusters, seed)

    found = compared(interleaved({"ours": ours, "sklearn": sklearn}, repeats), "ours")
    return {"rows": num_rows, "clusters": num_clusters, "seeds": SEEDS, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true", help="four points only, for a busy machine")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rate = rates()
    points = QUICK if options.quick else tuple(grid())
    kmeans(unit_rows(10_000, 128, 4), 4, 0, backend="auto")  # imports and compiles
    found: dict[str, Any] = {
        "rates": {name: round(value / 1e9, 1) for name, value in rate.items()},
        "evaluation": [evaluation(3520, 176, options.repeats), evaluation(719, 7, options.repeats)],
        "lloyd": [],
    }
    for point in points:
        for centres in (CENTRES, 0):
            if not centres or np.prod(point) < LONG:
                found["lloyd"].append(lloyd(*point, centres, options.repeats, rate))
                write(options.out, found)  # what was measured stays, whatever comes


if __name__ == "__main__":
    main()
