"""The indexed images as something to ask: a shortlist by faiss, put in the order that the scores of a run are of.

What is left out (a patient's images) is left out of the gallery, never marked wrong, and others take its place. In an
exact index the answer is that of a scan of everything in float64, ties to the lower row: a shortlist is taken only if
nothing outside of it can belong before its end, else a longer one is asked for. A ranking by some subspaces is always
such a scan.

Legend: M images, D embedding width, K subspaces, n queries, k neighbours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from cluster.vector_index import VectorIndex, tolerance
from data_shards.catalogue import Catalogue
from trainer.metrics.neighbours import Space
from trainer.subspaces.partition import SubspacePartition

Vectors = npt.NDArray[np.float32]
Ranked = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
_SPARE = 16
_KEPT_SCANS = 4  # choices of subspaces whose columns stay in memory


@dataclass(frozen=True)
class Want:
    """What a query asks for: k neighbours, none of `removed` (rows), by `subspaces` only; () is the whole embedding."""

    k: int
    removed: tuple[int, ...] = ()
    subspaces: tuple[int, ...] = ()


class Gallery:
    """Embedded images, asked by vector."""

    def __init__(self, images: Catalogue, partition: SubspacePartition, index: VectorIndex) -> None:
        self.images, self.partition, self._index = images, partition, index
        self._scan = lru_cache(_KEPT_SCANS)(self._columns)

    def nearest(self, vectors: Vectors, wants: Sequence[Want]) -> list[Ranked]:
        """Return rows (at most k,) and Euclidean distances of each of (n, D) unit vectors, nearest first.

        Distances are between unit vectors: with m of K subspaces, between their blocks divided by sqrt(m).
        """
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, want in enumerate(wants):
            alike[want.subspaces].append(i)
        found: dict[int, Ranked] = {}
        for subspaces, members in alike.items():
            ranked = self._nearest(vectors[members], [wants[i] for i in members], subspaces)
            found.update(zip(members, ranked, strict=True))
        return [found[i] for i in range(len(wants))]

    def by_subspace(self, vector: Vectors, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return (k, K) distances of rows to a (D,) vector in each subspace, between unit blocks."""
        blocks = [self.restricted(np.vstack([vector[None], self.images.vectors[rows]]), (k,)) for k in self._all()]
        return np.stack([np.linalg.norm(block[1:] - block[0], axis=1) for block in blocks], axis=1).astype(np.float32)

    def restricted(self, vectors: Vectors, subspaces: tuple[int, ...]) -> Vectors:
        """Return the columns of some subspaces as unit rows; () gives the vectors as they are."""
        if not subspaces:
            return vectors
        slices = self.partition.slices
        columns = np.concatenate([vectors[:, slices[k]] for k in subspaces], axis=1)
        return np.asarray(columns * np.float32(np.sqrt(self.partition.num_subspaces / len(subspaces))))

    def _all(self) -> range:
        return range(self.partition.num_subspaces)

    def _columns(self, subspaces: tuple[int, ...]) -> tuple[Vectors, VectorIndex]:
        vectors = np.ascontiguousarray(self.restricted(self.images.vectors, subspaces))
        return vectors, VectorIndex.build("exact", vectors)

    def _nearest(self, vectors: Vectors, wants: Sequence[Want], subspaces: tuple[int, ...]) -> list[Ranked]:
        gallery, index = self._scan(subspaces) if subspaces else (self.images.vectors, self._index)
        queries = self.restricted(vectors, subspaces)
        size = max(want.k + len(want.removed) for want in wants) + _SPARE
        size = size if index.kind == "exact" else max(size, 4 * max(want.k for want in wants))
        rows, squared = index.shortlist(queries, size)
        ranked = []
        for query, want, own, far in zip(queries, wants, rows, squared[:, -1], strict=True):
            found = _ranked(query, gallery, own, want)
            ranked.append(
                found if _is_sure(found, want, far, index, len(own)) else _longer(query, gallery, index, want)
            )
        return ranked


def _longer(query: Vectors, gallery: Vectors, index: VectorIndex, want: Want) -> Ranked:
    size = 2 * (want.k + len(want.removed) + _SPARE)
    while True:
        rows, squared = index.shortlist(query[None], size)
        found = _ranked(query, gallery, rows[0], want)
        if _is_sure(found, want, squared[0, -1], index, len(rows[0])):
            return found
        size *= 2


def _is_sure(found: Ranked, want: Want, farthest: float, index: VectorIndex, size: int) -> bool:
    """Tell whether no image beyond the shortlist, whose last lies at `farthest` (squared), can belong to the answer."""
    if index.kind != "exact" or size >= len(index):
        return True
    distances = found[1]
    return len(distances) == want.k and float(distances[-1]) ** 2 + tolerance(index.num_dims) < farthest


def _ranked(query: Vectors, gallery: Vectors, shortlist: npt.NDArray[np.int64], want: Want) -> Ranked:
    """Return the first k of a shortlist in the order of `Space`, without what is removed."""
    rows = np.sort(shortlist[(shortlist >= 0) & ~np.isin(shortlist, want.removed)])
    if not len(rows):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    space = Space(torch.from_numpy(query[None]), gallery=torch.from_numpy(gallery[rows]))
    places, squared = space.nearest(np.zeros(1, np.int64), min(want.k, len(rows)))
    return rows[places[0]], np.sqrt(squared[0]).astype(np.float32)
