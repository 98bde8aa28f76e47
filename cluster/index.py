"""Nearest centroid of every row: a fast float32 screen by numpy, faiss or torch, then an exact decision.

A float32 matrix product changes its last bits with block size, thread count and instruction set, so on its own it
would let the number of shards decide a near tie. Every backend here only *screens*: it gives the best centroid and
all that lie within a rigorous rounding bound of it (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
section 3.1). Those few pairs are decided again in float64, row by row, the lower id winning an exact tie. The labels
are therefore one function of (row, centroids), whatever the backend, block or machine.

This module is the only door to faiss. faiss aborts the whole process (C++ exception inside an OpenMP region) when a
distance overflows, hence `check_features` before anything reaches it.

Legend: n rows of a block, F feature width, K centroids, p candidate pairs.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cluster.screen import UNIT, Backend, Features, Labels, Screen, shifted_scores
from data_shards.errors import UserError

BackendName = Literal["auto", "numpy", "faiss", "faiss-gpu", "torch"]

MAX_MAGNITUDE = 1e15  # squares and sums of 1e15 still fit float32; 1e20 makes faiss abort the process
_EXACT_BLOCK = 1 << 21  # float64 numbers per block of the exact pass: 16 MiB


def check_features(features: npt.NDArray[Any], row_ids: npt.NDArray[Any] | None = None) -> Features:
    """Return the features as C-contiguous (n, F) float32.

    Raises UserError for another rank, and for values that are not finite or not below 1e15 in magnitude; the sentence
    names the first such row.
    """
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise UserError(f"k-means needs a (rows, features) array of numbers, got {features.dtype} {features.shape}.")
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(features, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        largest = float(np.max(np.abs(block))) if block.size else 0.0
    if largest < MAX_MAGNITUDE:
        return block
    row = int(np.flatnonzero(~(np.abs(block) < MAX_MAGNITUDE).all(axis=1))[0])
    where = row if row_ids is None else int(row_ids[row])
    raise UserError(
        f"The features of row {where} are not finite or not below {MAX_MAGNITUDE:g} in magnitude; "
        "k-means was not started. Look for a diverged loss or damaged weights."
    )


def exact_distances(rows: Features, centroids: Features) -> npt.NDArray[np.float64]:
    """Return (p,) squared distances of row i to centroid i in float64; each depends on its own pair alone."""
    difference = rows.astype(np.float64)
    difference -= centroids
    difference *= difference
    out: npt.NDArray[np.float64] = np.add.reduce(difference, axis=1)
    return out


def _decide(chunk: Features, centroids: Features, screen: Screen) -> Labels:
    labels, rows, columns = screen
    if not rows.size:
        return labels
    distances = np.empty(rows.size)
    step = max(1, _EXACT_BLOCK // chunk.shape[1])
    for start in range(0, rows.size, step):
        part = slice(start, start + step)
        distances[part] = exact_distances(chunk[rows[part]], centroids[columns[part]])
    order = np.lexsort((columns, distances, rows))
    first = np.ones(order.size, dtype=bool)
    first[1:] = rows[order][1:] != rows[order][:-1]
    winners = order[first]
    labels[rows[winners]] = columns[winners]
    return labels


class NearestCentroid:
    """Exact labels of blocks against one set of centroids; `load` once, `prepare` per iteration."""

    def __init__(self, backend: BackendName = "auto", num_threads: int = 1) -> None:
        self._backend = make_backend(backend, num_threads)
        self._centroids: Features = np.zeros((0, 0), dtype=np.float32)

    def load(self, block: Features) -> Any:
        """Return the block where the backend works (the same array on a CPU)."""
        return self._backend.load(block)

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """Take the (K, F) centroids; `max_norm` bounds the Euclidean norm of every row to come."""
        self._centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._backend.prepare(self._centroids, max_norm)

    def labels(self, block: Features, loaded: Any = None) -> Labels:
        """Return (n,) int32 labels of a block; `loaded` is what `load` gave for it."""
        out = np.empty(len(block), dtype=np.int32)
        loaded = self.load(block) if loaded is None else loaded
        for start in range(0, len(block), self._backend.chunk):
            part = slice(start, start + self._backend.chunk)
            out[part] = _decide(block[part], self._centroids, self._backend.screen(loaded[part]))
        return out


def nearest(features: Features, centroids: Features, backend: BackendName = "auto", num_threads: int = 1) -> Labels:
    """Return (n,) int32: the nearest of (K, F) centroids for every (n, F) row; ties go to the lower id.

    Raises UserError for non-finite or huge values and for a backend that this machine lacks.
    """
    features, centroids = check_features(features), check_features(centroids)
    index = NearestCentroid(backend, num_threads)
    index.prepare(centroids, row_norm_bound(features))
    return index.labels(features)


def row_norm_bound(features: Features) -> float:
    """Return an upper bound of the Euclidean row norms, rounding included."""
    if not features.size:
        return 0.0
    squares = float(np.max(np.einsum("ij,ij->i", features, features)))
    return float(np.sqrt(squares * (1 + features.shape[1] * 2 * UNIT))) + 1e-20


class NumpyBackend:
    """One sgemm per chunk. On one core it beat `faiss` searching for two neighbours by 1.2 to 1.5 times."""

    chunk = 2048

    def load(self, block: Features) -> Features:
        return block

    def prepare(self, centroids: Features, max_norm: float) -> None:
        self._weights, self._offsets, self._tolerance = shifted_scores(centroids, max_norm)

    def screen(self, chunk: Features) -> Screen:
        scores = chunk @ self._weights
        scores += self._offsets
        labels = scores.argmin(axis=1)
        limit = np.take_along_axis(scores, labels[:, None], axis=1) + self._tolerance
        near = scores <= limit
        rows = np.empty(0, dtype=np.int64)
        columns = rows
        if np.count_nonzero(near) > len(chunk):
            undecided = np.flatnonzero(np.count_nonzero(near, axis=1) > 1)
            at, columns = np.nonzero(near[undecided])
            rows = undecided[at]
        return Screen(labels.astype(np.int32), rows, columns)


class FaissBackend:
    """faiss flat index over the centroids, searched for two neighbours; the gap to the second shows a near tie."""

    chunk = 16384

    def __init__(self, gpu: bool, num_threads: int) -> None:
        import faiss

        self._faiss = faiss
        faiss.omp_set_num_threads(num_threads)
        self._resources = faiss.StandardGpuResources() if gpu else None

    def load(self, block: Features) -> Features:
        return block

    def prepare(self, centroids: Features, max_norm: float) -> None:
        flat: Any = self._faiss.IndexFlatL2(centroids.shape[1])
        if self._resources is not None:
            flat = self._faiss.index_cpu_to_gpu(self._resources, 0, flat)
        flat.add(centroids)
        self._index, self._num_centroids = flat, len(centroids)
        largest = row_norm_bound(centroids)
        self._tolerance = 4.0 * (centroids.shape[1] + 8) * UNIT * (max_norm + largest) ** 2 + 1e-35

    def screen(self, chunk: Features) -> Screen:
        distances, labels = self._index.search(chunk, min(2, self._num_centroids))
        empty = np.empty(0, dtype=np.int64)
        if self._num_centroids == 1:
            return Screen(labels[:, 0].astype(np.int32), empty, empty)
        undecided = np.flatnonzero(distances[:, 1] - distances[:, 0] <= self._tolerance)
        rows = np.repeat(undecided, self._num_centroids)
        return Screen(
            labels[:, 0].astype(np.int32), rows, np.tile(np.arange(self._num_centroids, dtype=np.int64), undecided.size)
        )


def make_backend(name: BackendName, num_threads: int = 1) -> Backend:
    """Return the backend of a name; "auto" takes what this process can use (UserError names what is missing)."""
    if name not in get_args(BackendName):
        raise UserError(f"Unknown k-means backend '{name}'; choose one of {', '.join(get_args(BackendName))}.")
    if name == "auto":
        name = _automatic()
    if name == "numpy":
        return NumpyBackend()
    if name == "torch":
        from cluster.torch_index import TorchBackend

        return TorchBackend()
    if importlib.util.find_spec("faiss") is None:
        raise UserError(
            "k-means backend 'faiss' needs the faiss-cpu or faiss-gpu package; install the extra [cpu] or [gpu]."
        )
    if name == "faiss-gpu" and not _faiss_gpus():
        # faiss.Kmeans(gpu=True) silently runs on the CPU here; we say so instead.
        raise UserError(
            "k-means backend 'faiss-gpu' found no GPU that faiss can use; choose 'auto', 'faiss' or 'torch'."
        )
    return FaissBackend(name == "faiss-gpu", num_threads)


def _faiss_gpus() -> int:
    if importlib.util.find_spec("faiss") is None:
        return 0
    import faiss

    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def _automatic() -> BackendName:
    from cluster.telemetry import num_visible_gpus

    if num_visible_gpus():
        # torch keeps the features on the GPU; faiss sends them over PCIe again in every iteration.
        if importlib.util.find_spec("torch") is not None:
            from cluster.torch_index import cuda_is_available

            if cuda_is_available():
                return "torch"
        if _faiss_gpus():
            return "faiss-gpu"
    return "faiss" if importlib.util.find_spec("faiss") is not None else "numpy"
