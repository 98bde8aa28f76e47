"""Exact nearest neighbours in a gallery, a few queries at a time, with an order that nothing can shake.

Float32 distances change their last bits with block size and thread count, and ties then flip neighbours. Here squared
distances are computed in float64, rounded to 2^-32 of the largest squared norm (float64 noise is far below that) and
packed with the row number into one integer: ties go to the lower row, on every machine, for every chunk size.

Legend: N queries, M items of the gallery, D embedding width, n queries of a chunk, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
ROW_BITS = 29
REMOVED = np.iinfo(np.int64).max
_FARTHEST = 2**34 - 1  # of two opposite vectors of the largest norm; one more would not fit beside the row
_MAX_CELLS = 2**24


def neighbours(
    vectors: Array | torch.Tensor, k: int, groups: Array | None = None, chunk: int = 1024
) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Return rows (N, k) and Euclidean distances (N, k) of the k nearest others of each of (N, D) vectors.

    The sample itself is never its own neighbour; with `groups` (N,), neither is an item of the same group ("" is no
    group). Where fewer than k are left, rows are padded with -1 and distances with infinity.
    """
    space = Space(vectors, groups)
    rows = np.full((space.num_queries, k), -1, dtype=np.int64)
    distances = np.full((space.num_queries, k), np.inf, dtype=np.float32)
    for part, removed in space.chunks(chunk):
        found, squared = space.nearest(part, removed, min(k, space.num_items))
        rows[part, : found.shape[1]] = found
        distances[part, : found.shape[1]] = np.sqrt(squared)
    return rows, distances


class Ranking(Protocol):
    """Puts a gallery in an order for each query: a Space, or what re-ranks one (trainer/metrics/reranking.py)."""

    @property
    def num_queries(self) -> int: ...

    @property
    def num_items(self) -> int: ...

    def chunks(self, chunk: int) -> Iterator[tuple[slice, Bools]]:
        """Yield the rows of a chunk of queries and (n, M) booleans: what is removed from the gallery of each."""
        ...

    def nearest(self, part: slice, removed: Bools, k: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Return rows (n, k), -1 where none is left, and squared distances (n, k) of the first of a chunk's queries."""
        ...


class Space:
    """Queries, the gallery they ask, and what a chunk of them finds in it.

    Without a `gallery` every query asks all others (leave-one-out): it is itself removed by its row. With group names,
    items of a query's own group are removed from its gallery; "" is no group.
    """

    def __init__(
        self,
        queries: Array | torch.Tensor,
        groups: Array | None = None,
        gallery: Array | torch.Tensor | None = None,
        gallery_groups: Array | None = None,
    ) -> None:
        if gallery is not None and (groups is None) != (gallery_groups is None):
            raise ValueError("groups of the queries and of the gallery are given together, or not at all")
        self.queries = torch.as_tensor(queries).detach().double()
        self.own = gallery is None
        self.gallery = self.queries if gallery is None else torch.as_tensor(gallery).detach().double()
        self.groups: tuple[Ints, Ints] | None = None
        if groups is not None:
            codes = group_codes(groups if gallery_groups is None else np.concatenate([groups, gallery_groups]))
            self.groups = codes[: self.num_queries], codes if self.own else codes[self.num_queries :]
        self._measure()

    @property
    def num_queries(self) -> int:
        return len(self.queries)

    @property
    def num_items(self) -> int:
        return len(self.gallery)

    def asking(self, queries: torch.Tensor) -> Space:
        """Return the same space with other (N, D) vectors of its queries: gallery and removals stay."""
        other = copy(self)
        other.queries = queries.double()
        other._measure()
        return other

    def inside(self) -> Space:
        """Return the space in which every item of the gallery asks all others, in the units of this one."""
        other = Space(self.gallery)
        other.quantum = self.quantum
        return other

    def chunks(self, chunk: int) -> Iterator[tuple[slice, Bools]]:
        """Yield the rows of a chunk of queries and (n, M) booleans: what is removed from the gallery of each."""
        step = max(1, min(chunk, _MAX_CELLS // max(1, self.num_items)))
        columns = np.arange(self.num_items)
        for start in range(0, self.num_queries, step):
            part = slice(start, min(start + step, self.num_queries))
            itself = np.arange(part.start, part.stop) if self.own else np.full(part.stop - part.start, -1)
            removed = itself[:, None] == columns[None, :]
            if self.groups is not None:
                removed |= self.groups[0][part, None] == self.groups[1][None, :]
            yield part, removed

    def squared(self, part: slice) -> torch.Tensor:
        """Return squared distances (n, M) of a chunk in whole quanta, int64."""
        squared = self._norms[0][part, None] + self._norms[1][None, :]
        squared = squared.addmm_(self.queries[part], self.gallery.T, alpha=-2.0)
        return (squared / self.quantum).round_().clamp_(0, _FARTHEST).long()

    def first_keys(self, part: slice, removed: Bools, k: int) -> Ints:
        """Return the first k of a chunk's queries as (n, k) ascending keys: quanta, then row; REMOVED at the end."""
        keys = (self.squared(part) << ROW_BITS) | torch.arange(self.num_items, device=self.gallery.device)
        keys.masked_fill_(torch.from_numpy(removed).to(keys.device), REMOVED)
        return _smallest(keys, k)

    def nearest(self, part: slice, removed: Bools, k: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Return rows (n, k), -1 where none is left, and squared distances (n, k) of a chunk's nearest, in order."""
        first = self.first_keys(part, removed, k)
        gone = first == REMOVED
        rows = np.where(gone, -1, first & (2**ROW_BITS - 1))
        return rows, np.where(gone, np.inf, (first >> ROW_BITS) * self.quantum)

    def _measure(self) -> None:
        self._norms = self.queries.square().sum(dim=1), self.gallery.square().sum(dim=1)
        largest = max((float(each.max()) for each in self._norms if len(each)), default=0.0)
        if not all(bool(torch.isfinite(each).all()) for each in self._norms):
            raise ValueError("neighbours of vectors that are not finite were asked for")
        self.quantum = max(largest, 1e-30) * 2.0**-32


def group_codes(groups: Array) -> Ints:
    """Return (N,) integers that are equal for equal group names; "" gets a number of its own every time."""
    names = np.asarray(groups).astype(str)
    codes = np.unique(names, return_inverse=True)[1].astype(np.int64).reshape(-1)
    return np.where(names == "", -1 - np.arange(len(names)), codes)


def _smallest(keys: torch.Tensor, k: int) -> Ints:
    """Return the k smallest of each row, ascending. On the CPU numpy's vectorised sort beats topk many times over."""
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1, largest=False, sorted=True).values.cpu().numpy()
    array = keys.numpy()
    if k < array.shape[1] // 2:
        array = np.partition(array, k - 1, axis=1)[:, :k]
    return np.sort(array, axis=1)[:, :k]
