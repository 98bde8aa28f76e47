"""Which images may be the nearest of a vector: a shortlist by faiss, which the caller puts in its exact order.

`exact` scans all vectors in float32, so that nothing nearer than the end of the shortlist can be missing, but for a
rounding error that `tolerance` bounds. `ivf` and `hnsw` look at a part of them; they hold a byte per dimension (the
vectors themselves are in the catalogue). Of 200,000 clustered vectors of width 64, on one core, exact searched in 25
ms, ivf in 2.3 ms (15 MB, built in 148 s), hnsw in 3.7 ms (67 MB, 470 s), all with a recall@10 of 0.999 or more in a
shortlist of 40; so `auto` never takes hnsw. Squared Euclidean distances throughout.

With cluster/index.py the only door to faiss.

Legend: M indexed vectors, D width, n queries, s length of the shortlist.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cluster.screen import UNIT
from data_shards.errors import DataIntegrityError, UserError

Kind = Literal["exact", "ivf", "hnsw"]
Shortlist = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
Vectors = npt.NDArray[np.float32]

EXACT_UP_TO = 100_000  # images: a scan of so many takes less than the network's forward pass
_LINKS = 32
_BUILD_BREADTH = 80
_SEARCH_BREADTH = 128
_POINTS_PER_LIST = 39  # fewer, and faiss's k-means warns that centroids are not worth much
_PROBED_SHARE = 1 / 16


def kind_for(num_vectors: int) -> Kind:
    """Return the kind that `auto` is for so many vectors."""
    return "exact" if num_vectors <= EXACT_UP_TO else "ivf"


def tolerance(num_dims: int) -> float:
    """Return how far a float32 squared distance of two vectors of length 1 may be from the true one."""
    return 4.0 * (num_dims + 8) * UNIT * 4.0


class VectorIndex:
    """A faiss index of (M, D) vectors; `build` or `from_bytes`."""

    def __init__(self, kind: Kind, index: Any) -> None:
        self.kind, self._index = kind, index

    @classmethod
    def build(cls, kind: Kind, vectors: Vectors) -> VectorIndex:
        """Index (M, D) vectors. Raises UserError without faiss."""
        faiss = _faiss()
        index = faiss.index_factory(vectors.shape[1], _FACTORIES[kind](len(vectors)), faiss.METRIC_L2)
        if kind == "hnsw":
            index.hnsw.efConstruction = _BUILD_BREADTH
        contiguous = np.ascontiguousarray(vectors, dtype=np.float32)
        if not index.is_trained:
            index.train(contiguous)
        index.add(contiguous)
        return cls(kind, index)

    @classmethod
    def from_bytes(cls, kind: Kind, data: bytes, num_vectors: int, num_dims: int) -> VectorIndex:
        """Take what `to_bytes` gave, which must be known to be ours; raises DataIntegrityError for another index."""
        faiss = _faiss()
        try:
            index = faiss.deserialize_index(np.frombuffer(data, dtype=np.uint8))
        except (RuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0][:200]
            raise DataIntegrityError(f"the index is not readable by faiss ({reason})") from None
        expected = {"ivf": faiss.IndexIVFScalarQuantizer, "hnsw": faiss.IndexHNSWSQ, "exact": faiss.IndexFlatL2}[kind]
        if not isinstance(index, expected) or (index.ntotal, index.d) != (num_vectors, num_dims):
            raise DataIntegrityError(f"the index is not one of {num_vectors} vectors of width {num_dims}")
        return cls(kind, index)

    def to_bytes(self) -> bytes:
        """Return the index as faiss writes it."""
        data: bytes = _faiss().serialize_index(self._index).tobytes()
        return data

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def num_dims(self) -> int:
        return int(self._index.d)

    def shortlist(self, queries: Vectors, size: int) -> Shortlist:
        """Return rows (n, s) and squared distances (n, s) for (n, D) queries, nearest first, s = min(size, M).

        Where `ivf` or `hnsw` find fewer, rows are -1.
        """
        wanted = min(size, len(self))
        # Not as `params` of the search: faiss.contrib.torch_utils, which pytorch-metric-learning's inference imports,
        # replaces the search of the whole process by one that has none.
        if self.kind == "ivf":
            self._index.nprobe = max(8, round(self._index.nlist * _PROBED_SHARE))
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = max(_SEARCH_BREADTH, 2 * wanted)
        distances, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), wanted)
        return rows, distances


def set_threads(num_threads: int) -> None:
    """Let faiss use so many threads in this process."""
    _faiss().omp_set_num_threads(num_threads)


def _lists(num_vectors: int) -> int:
    return max(1, min(round(4 * math.sqrt(num_vectors)), num_vectors // _POINTS_PER_LIST))


_FACTORIES: dict[Kind, Callable[[int], str]] = {
    "exact": lambda _: "Flat",
    "ivf": lambda num_vectors: f"IVF{_lists(num_vectors)},SQ8",
    "hnsw": lambda _: f"HNSW{_LINKS}_SQ8",
}


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise UserError("searching needs faiss: pip install 'subspace-trainer[cpu]'")
    import faiss

    return faiss
