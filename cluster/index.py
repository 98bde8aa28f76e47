"""Nearest centroid of every row, by the fastest backend at hand: lloyd.cpp, numpy, faiss or torch.

All of them give the same labels (`cluster.backend`). This module is the only door to faiss. faiss aborts the whole
process (C++ exception inside an OpenMP region) when a distance overflows, hence `check_magnitudes` before anything
reaches it.

Legend: n rows of a block, F feature width, K centroids.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cluster.backend import Backend, Block, Loaded, Rows, Screen, Screening
from cluster.native import NativeBackend, library
from cluster.screen import UNIT, Features, Labels, pieces, row_norms, shifted_scores
from data_shards.errors import UserError

BackendName = Literal["auto", "native", "numpy", "faiss", "faiss-gpu", "torch"]

MAX_MAGNITUDE = 1e15  # squares and sums of 1e15 still fit float32; 1e20 makes faiss abort the process


def check_features(features: npt.NDArray[Any]) -> Features:
    """Return the features as C-contiguous (n, F) float32.

    Raises UserError for another rank, and for values that are not finite or not below 1e15 in magnitude; the sentence
    names the first such row.
    """
    block = as_floats(features)
    check_magnitudes(block, largest_magnitude(block))
    return block


def as_floats(features: npt.NDArray[Any]) -> Features:
    """Return numbers as C-contiguous (n, F) float32; raises UserError for another rank."""
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise UserError(f"k-means needs a (rows, features) array of numbers, got {features.dtype} {features.shape}.")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(features, dtype=np.float32)


def check_magnitudes(block: Features, largest: float, row_ids: npt.NDArray[Any] | None = None) -> None:
    """Raise UserError, naming the first such row, when the largest magnitude says that a row cannot be clustered."""
    if largest < MAX_MAGNITUDE:
        return
    row = int(np.flatnonzero(~(np.abs(block) < MAX_MAGNITUDE).all(axis=1))[0])
    where = row if row_ids is None else int(row_ids[row])
    raise UserError(
        f"The features of row {where} are not finite or not below {MAX_MAGNITUDE:g} in magnitude; "
        "k-means was not started. Look for a diverged loss or damaged weights."
    )


def largest_magnitude(features: Features) -> float:
    """Return the largest magnitude, 0 without any; NaN when there is one."""
    if not features.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        most = [np.maximum(features[part].max(), -features[part].min()) for part in pieces(*features.shape)]
        return float(np.max(most))


class NearestCentroid:
    """Exact labels of blocks against one set of centroids; `load` once, `prepare` per iteration.

    With "auto" the first use decides which backend does it.
    """

    def __init__(self, backend: BackendName = "auto", num_threads: int = 1) -> None:
        self._num_threads = num_threads
        self._made = None if backend == "auto" else make_backend(backend, num_threads)

    @property
    def backend(self) -> Backend:
        """What does the work."""
        if self._made is None:
            self._made = make_backend("auto", self._num_threads)
        return self._made

    def load(self, features: npt.NDArray[Any], row_ids: npt.NDArray[Any] | None = None) -> Block:
        """Put (n, F) features where the backend works; raises UserError as `check_features` does."""
        floats = as_floats(features)
        loaded = self.backend.load(floats)
        check_magnitudes(floats, loaded.max_abs, row_ids)
        return Block(floats, loaded)

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """Take the (K, F) centroids; `max_norm` bounds the Euclidean norm of every row to come."""
        self.backend.prepare(np.ascontiguousarray(centroids, dtype=np.float32), max_norm)

    def labels(self, features: Features) -> Labels:
        """Return (n,) int32 labels of features."""
        block = self.load(features)
        self.backend.relabel(block, None, 0)
        assert block.labels is not None
        return block.labels


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
    return float(row_norms(features).max()) if features.size else 0.0


class _HostBackend(Screening):
    """What numpy and faiss share: rows stay where they are."""

    def load(self, block: Features) -> Loaded:
        with np.errstate(all="ignore"):  # of rows that are refused after this
            norms = row_norms(block)
        longest = float(norms.max()) if len(norms) else 0.0
        return Loaded(block, norms, np.zeros(block.shape[1]), largest_magnitude(block), longest)


class NumpyBackend(_HostBackend):
    """One sgemm per chunk. On one core it beat `faiss` searching for two neighbours by 1.2 to 1.5 times."""

    chunk = 2048

    def prepare(self, centroids: Features, max_norm: float) -> None:
        super().prepare(centroids, max_norm)
        self._weights, self._offsets, self._tolerance = shifted_scores(centroids, max_norm)

    def screen(self, loaded: Loaded, rows: Rows) -> Screen:
        chunk = loaded.content[rows]
        scores = chunk @ self._weights
        scores += self._offsets
        labels = scores.argmin(axis=1)
        limit = np.take_along_axis(scores, labels[:, None], axis=1) + self._tolerance
        near = scores <= limit
        at = columns = np.empty(0, dtype=np.int64)
        if np.count_nonzero(near) > len(chunk):
            undecided = np.flatnonzero(np.count_nonzero(near, axis=1) > 1)
            at, columns = np.nonzero(near[undecided])
            at = undecided[at]
        return Screen(labels.astype(np.int32), None, at, columns)


class FaissBackend(_HostBackend):
    """faiss flat index over the centroids, searched for two neighbours; the gap to the second shows a near tie."""

    chunk = 16384

    def __init__(self, gpu: bool, num_threads: int) -> None:
        import faiss

        self._faiss = faiss
        faiss.omp_set_num_threads(num_threads)
        self._resources = faiss.StandardGpuResources() if gpu else None

    def prepare(self, centroids: Features, max_norm: float) -> None:
        super().prepare(centroids, max_norm)
        flat: Any = self._faiss.IndexFlatL2(centroids.shape[1])
        if self._resources is not None:
            flat = self._faiss.index_cpu_to_gpu(self._resources, 0, flat)
        flat.add(centroids)
        self._index, self._num_centroids = flat, len(centroids)
        largest = row_norm_bound(centroids)
        self._tolerance = 4.0 * (centroids.shape[1] + 8) * UNIT * (max_norm + largest) ** 2 + 1e-35

    def screen(self, loaded: Loaded, rows: Rows) -> Screen:
        distances, labels = self._index.search(loaded.content[rows], min(2, self._num_centroids))
        first = labels[:, 0].astype(np.int32)
        if self._num_centroids == 1:
            empty = np.empty(0, dtype=np.int64)
            return Screen(first, np.full(len(labels), np.inf, dtype=np.float32), empty, empty)
        gaps = distances[:, 1] - distances[:, 0] - self._tolerance
        undecided = np.flatnonzero(gaps <= 0)
        at = np.repeat(undecided, self._num_centroids)
        columns = np.tile(np.arange(self._num_centroids, dtype=np.int64), undecided.size)
        return Screen(first, gaps, at, columns)


def make_backend(name: BackendName, num_threads: int = 1) -> Backend:
    """Return the backend of a name; "auto" takes what this process can use (UserError names what is missing)."""
    if name not in get_args(BackendName):
        raise UserError(f"Unknown k-means backend '{name}'; choose one of {', '.join(get_args(BackendName))}.")
    if name == "auto":
        name = automatic()
    if name == "numpy":
        return NumpyBackend()
    if name == "native":
        return NativeBackend(num_threads)
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


def automatic() -> BackendName:
    """Return the fastest backend here: on a GPU the rows stay in its memory, on a CPU lloyd.cpp where it was built."""
    from cluster.telemetry import num_visible_gpus

    if num_visible_gpus():
        # torch keeps the features on the GPU; faiss sends them over PCIe again in every iteration.
        from cluster.torch_index import cuda_is_available

        if cuda_is_available():
            return "torch"
        if _faiss_gpus():
            return "faiss-gpu"
    return "numpy" if library() is None else "native"
