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
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cluster.screen import (
    UNIT,
    Backend,
    Features,
    Ids,
    Labels,
    Loaded,
    Rows,
    Screen,
    compiled,
    pieces,
    row_norms,
    shifted_scores,
)
from cluster.sums import CHUNK, add_chunk
from data_shards.errors import UserError

BackendName = Literal["auto", "numpy", "faiss", "faiss-gpu", "torch"]

MAX_MAGNITUDE = 1e15  # squares and sums of 1e15 still fit float32; 1e20 makes faiss abort the process
_EXACT_BLOCK = 1 << 16  # numbers per block of the exact pass, which stays in cache


def check_features(features: npt.NDArray[Any], row_ids: npt.NDArray[Any] | None = None) -> Features:
    """Return the features as C-contiguous (n, F) float32.

    Raises UserError for another rank, and for values that are not finite or not below 1e15 in magnitude; the sentence
    names the first such row.
    """
    return checked(features, row_ids)[0]


def checked(features: npt.NDArray[Any], row_ids: npt.NDArray[Any] | None = None) -> tuple[Features, float]:
    """Return the features as `check_features` does, and their largest magnitude."""
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise UserError(f"k-means needs a (rows, features) array of numbers, got {features.dtype} {features.shape}.")
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(features, dtype=np.float32)
    largest = largest_magnitude(block)
    if largest < MAX_MAGNITUDE:
        return block, largest
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


def exact_distances(rows: Features, centroids: Features) -> npt.NDArray[np.float64]:
    """Return (p,) squared distances of row i to centroid i in float64; each depends on its own pair alone."""
    difference = rows.astype(np.float64)
    difference -= centroids
    difference *= difference
    out: npt.NDArray[np.float64] = np.add.reduce(difference, axis=1)
    return out


def _decide(features: Features, centroids: Features, at: Ids, columns: Ids, kernels: Any) -> tuple[Ids, Labels]:
    """Return the rows among candidate pairs (at, columns), which come in order of rows, and their nearest centroid."""
    at, columns = _far_left_out(features, centroids, at, columns, kernels)
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    sizes = np.diff(starts, append=at.size)
    rows, labels = at[starts], columns[starts].astype(np.int32)
    if starts.size == at.size:
        return rows, labels
    open_ = np.repeat(sizes > 1, sizes)  # rows that float32 leaves more than one candidate
    at, columns = at[open_], columns[open_]
    distances = np.empty(at.size)
    step = max(1, _EXACT_BLOCK // features.shape[1])
    for start in range(0, at.size, step):
        part = slice(start, start + step)
        distances[part] = exact_distances(features[at[part]], centroids[columns[part]])
    order = np.lexsort((columns, distances, at))
    first = np.diff(at[order], prepend=-1) != 0
    labels[sizes > 1] = columns[order[first]]
    return rows, labels


def _far_left_out(features: Features, centroids: Features, at: Ids, columns: Ids, kernels: Any) -> tuple[Ids, Ids]:
    """Drop the pairs that float32 distances already rule out: most of them, in a third of the time of float64."""
    slack = np.float32(4 * (features.shape[1] + 8) * UNIT)
    if kernels is not None:
        keep = np.empty(at.size, dtype=np.bool_)
        kernels.near_pairs(features, centroids, at, columns, slack, keep)
        return at[keep], columns[keep]
    squares = np.empty(at.size, dtype=np.float32)
    step = max(1, _EXACT_BLOCK // features.shape[1])
    for start in range(0, at.size, step):
        part = slice(start, start + step)
        difference = features[at[part]]
        difference -= centroids[columns[part]]
        np.einsum("ij,ij->i", difference, difference, out=squares[part])
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    least = np.repeat(np.minimum.reduceat(squares, starts), np.diff(starts, append=at.size))
    keep = squares <= least * (1 + slack) + slack * np.float32(1e-30)
    return at[keep], columns[keep]


class NearestCentroid:
    """Exact labels of blocks against one set of centroids; `load` once, `prepare` per iteration.

    With "auto" the first block that is loaded decides which backend does it.
    """

    def __init__(self, backend: BackendName = "auto", num_threads: int = 1) -> None:
        self._num_threads = num_threads
        self._made = None if backend == "auto" else make_backend(backend, num_threads)
        self._centroids: Features = np.zeros((0, 0), dtype=np.float32)

    @property
    def _backend(self) -> Backend:
        if self._made is None:
            self._made = make_backend("auto", self._num_threads)
        return self._made

    @property
    def kernels(self) -> Any:
        """The compiled kernels, where the backend uses them."""
        return self._backend.kernels

    def load(self, block: Features) -> Loaded:
        """Return the block where the backend works (the same array on a CPU)."""
        if self._made is None:
            self._made = make_backend(automatic(block.size), self._num_threads)
        return self._backend.load(block)

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """Take the (K, F) centroids; `max_norm` bounds the Euclidean norm of every row to come."""
        self._centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._backend.prepare(self._centroids, max_norm)

    def look(self, features: Features, loaded: Loaded, rows: Ids | None = None) -> Iterator[tuple[Rows, Screen]]:
        """Yield, piece by piece, which rows of a block were looked at (None: all) and their exact labels and gaps."""
        number = len(features) if rows is None else len(rows)
        for start in range(0, number, self._backend.chunk):
            stop = min(start + self._backend.chunk, number)
            piece: Rows = slice(start, stop) if rows is None else rows[start:stop]
            screen = self._backend.screen(loaded, piece)
            if screen.rows.size:
                at = screen.rows + start if rows is None else rows[start:stop][screen.rows]
                decided, labels = _decide(features, self._centroids, at, screen.columns, self.kernels)
                screen.labels[decided - start if rows is None else np.searchsorted(rows[start:stop], decided)] = labels
            yield piece, screen

    def labels(self, block: Features) -> Labels:
        """Return (n,) int32 labels of a block."""
        out = np.empty(len(block), dtype=np.int32)
        for rows, screen in self.look(block, self.load(block)):
            out[rows] = screen.labels
        return out

    def add_rows(
        self, sums: npt.NDArray[np.int64], loaded: Loaded, rows: Ids, old: Labels | None, new: Labels, shift: int
    ) -> None:
        """See `Backend.add_rows`."""
        self._backend.add_rows(sums, loaded, rows, old, new, shift)


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


class _HostBackend:
    """What numpy and faiss share: rows stay where they are, sums are taken by numpy."""

    kernels: Any = None

    def load(self, block: Features) -> Loaded:
        return Loaded(block, row_norms(block), np.zeros(block.shape[1]))

    def add_rows(
        self, sums: npt.NDArray[np.int64], loaded: Loaded, rows: Ids, old: Labels | None, new: Labels, shift: int
    ) -> None:
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            add_chunk(sums, loaded.content[rows[part]], None if old is None else old[part], new[part], shift)


class NumpyBackend(_HostBackend):
    """One sgemm per chunk. On one core it beat `faiss` searching for two neighbours by 1.2 to 1.5 times."""

    chunk = 2048

    def prepare(self, centroids: Features, max_norm: float) -> None:
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
        name = automatic(0)
    if name == "numpy":
        return NumpyBackend()
    if name == "torch":
        from cluster.torch_index import TorchBackend

        return TorchBackend(kernels=compiled())
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


# The screen for a first block of so many numbers (rows x width), the first line that fits. On one Intel core with AMX
# torch's product in bfloat16 took a half (K = 10) to a seventh (K = 256) of numpy's in float32, at widths 128 and 1024;
# below a million numbers a clustering is over before torch is imported (1.2 s). What follows the product has to be
# compiled, though: without numba 20 iterations on 50,000 x 128, K = 10, took torch 0.49 s, faiss 0.41 and numpy 0.30.
ON_CPU: tuple[tuple[int, BackendName], ...] = ((1 << 20, "torch"), (0, "numpy"))


def automatic(num_values: int) -> BackendName:
    """Return the fastest backend here for a first block of so many numbers."""
    from cluster.telemetry import num_visible_gpus

    if num_visible_gpus():
        # torch keeps the features on the GPU; faiss sends them over PCIe again in every iteration.
        from cluster.torch_index import cuda_is_available

        if cuda_is_available():
            return "torch"
        if _faiss_gpus():
            return "faiss-gpu"
    fastest = next(name for least, name in ON_CPU if num_values >= least)
    return "numpy" if fastest == "torch" and compiled() is None else fastest
