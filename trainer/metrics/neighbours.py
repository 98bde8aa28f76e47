"""Exact nearest neighbours in a gallery, a few queries at a time, with an order that nothing can shake.

Float32 distances change their last bits with block size and thread count, and ties then flip neighbours. Here squared
distances are computed in float64, rounded to 2^-32 of the largest squared norm (float64 noise is far below that) and
packed with the row number into one integer: ties go to the lower row, on every machine, for every chunk size. Where
few of many are asked for, `Shortlists` says whose distances are needed; the others are never computed.

Legend: N queries, M items of the gallery, D embedding width, n queries of a chunk, k neighbours,
C pairs of a query and an item.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from trainer.metrics.shortlists import Shortlists

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
ROW_BITS = 29
REMOVED = np.iinfo(np.int64).max
_FARTHEST = 2**34 - 1  # of two opposite vectors of the largest norm; one more would not fit beside the row
_MAX_CELLS, _LEAST_QUERIES = 2**20, 32  # distances of a chunk that looks at all items, which are converted each time
_ITEMS = 2**15  # of the gallery that are looked at together
_CELLS = 2**17  # numbers of vectors that are compared exactly at once: they stay in the cache


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
    for part in space.chunks(chunk, k):
        found, squared = space.nearest(part, min(k, space.num_items))
        rows[part, : found.shape[1]] = found
        distances[part, : found.shape[1]] = np.sqrt(squared)
    return rows, distances


class Ranking(Protocol):
    """Puts a gallery in an order for each query: a Space, or what re-ranks one (trainer/metrics/reranking.py)."""

    @property
    def num_queries(self) -> int: ...

    @property
    def num_items(self) -> int: ...

    def num_relevant(self, labels: Array, gallery_labels: Array) -> Ints:
        """Return for each query (N,) how many items have its label, but for those that are removed."""
        ...

    def chunks(self, chunk: int, k: int, queries: Ints | None = None) -> Iterator[Ints]:
        """Yield (n,) of the queries (None: all), in their order, as many as may be asked at once for k neighbours."""
        ...

    def nearest(self, part: Ints, k: int) -> tuple[Ints, npt.NDArray[np.float64]]:
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
        self.queries = torch.as_tensor(queries).detach()
        self.own = gallery is None
        self.gallery = self.queries if gallery is None else torch.as_tensor(gallery).detach()
        self.groups: tuple[Ints, Ints] | None = None
        if groups is not None:
            codes = group_codes(groups if gallery_groups is None else np.concatenate([groups, gallery_groups]))
            self.groups = codes[: self.num_queries], codes if self.own else codes[self.num_queries :]
            order = np.argsort(self.groups[1], kind="stable")
            self._by_group = order, self.groups[1][order]
        self._shortlists: Shortlists | None = None
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
        other.queries = queries
        other._measure()
        return other

    def inside(self) -> Space:
        """Return the space in which every item of the gallery asks all others, in the units of this one."""
        other = Space(self.gallery)
        other.quantum = self.quantum
        return other

    def num_relevant(self, labels: Array, gallery_labels: Array) -> Ints:
        """Return for each query (N,) how many items have its label, but for those that are removed."""
        codes = np.unique(np.concatenate([labels, gallery_labels]), return_inverse=True)[1].reshape(-1).astype(np.int64)
        asked, there = codes[: len(labels)], codes[len(labels) :]
        counts = np.bincount(there, minlength=int(codes.max(initial=-1)) + 1)[asked]
        if self.groups is None:
            return counts - self.own
        names = np.concatenate(self.groups)
        names = names - names.min(initial=0)
        pairs = np.unique(codes * (names.max(initial=0) + 1) + names, return_inverse=True)[1].reshape(-1)
        alike = np.bincount(pairs[len(labels) :], minlength=int(pairs.max(initial=-1)) + 1)[pairs[: len(labels)]]
        return np.asarray(counts - alike)

    def chunks(self, chunk: int, k: int, queries: Ints | None = None) -> Iterator[Ints]:
        """Yield (n,) of the queries (None: all), in their order, as many as may be asked at once for k neighbours."""
        rows = np.arange(self.num_queries) if queries is None else queries
        step = min(chunk, Shortlists.num_queries(self.num_items, k))
        if not Shortlists.pays(self.num_items, k):
            step = min(chunk, max(_LEAST_QUERIES, _MAX_CELLS // max(1, self.num_items)))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def removed(self, part: Ints) -> Bools:
        """Return (n, M) booleans: what is removed from the gallery of each of a chunk's queries."""
        out = np.zeros((len(part), self.num_items), dtype=np.bool_)
        out[self._removed_pairs(part)] = True
        return out

    def squared(self, part: Ints) -> torch.Tensor:
        """Return squared distances (n, M) of a chunk in whole quanta, int64."""
        queries = self.queries[part].double()
        out = torch.empty(len(part), self.num_items, dtype=torch.int64, device=queries.device)
        for start in range(0, self.num_items, _ITEMS):
            items = slice(start, start + _ITEMS)
            squared = self._norms[0][part, None] + self._norms[1][None, items]
            out[:, items] = self._quanta(squared.addmm_(queries, self.gallery[items].double().T, alpha=-2.0))
        return out

    def first_keys(self, part: Ints, k: int) -> Ints:
        """Return the first k of a chunk's queries as (n, k) ascending keys: quanta, then row; REMOVED at the end."""
        removed = self._removed_pairs(part)
        if Shortlists.pays(self.num_items, k):
            pairs = self._screen().of(self.queries[part], k, removed)
            if pairs is not None:
                return self._sorted_keys(part, k, *pairs)
        keys = (self.squared(part) << ROW_BITS) | torch.arange(self.num_items, device=self.gallery.device)
        keys[tuple(torch.from_numpy(each).to(keys.device) for each in removed)] = REMOVED
        return _smallest(keys, k)

    def nearest(self, part: Ints, k: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Return rows (n, k), -1 where none is left, and squared distances (n, k) of a chunk's nearest, in order."""
        first = self.first_keys(part, k)
        gone = first == REMOVED
        rows = np.where(gone, -1, first & (2**ROW_BITS - 1))
        return rows, np.where(gone, np.inf, (first >> ROW_BITS) * self.quantum)

    def _sorted_keys(self, part: Ints, k: int, owners: Ints, items: Ints) -> Ints:
        """Return the first k keys (n, k) of pairs (C,): queries of the chunk, ascending, and items of the gallery."""
        counts = np.bincount(owners, minlength=len(part))
        table = np.full((len(part), int(counts.max())), -1)
        table[owners, np.arange(len(owners)) - np.repeat(counts.cumsum() - counts, counts)] = items
        keys = np.full((len(part), k), REMOVED)
        order = np.argsort(counts)
        step = max(1, _CELLS // (table.shape[1] * self.gallery.shape[1]))
        for start in range(0, len(part), step):
            asked = order[start : start + step]
            rows = table[asked, : counts[asked[-1]]]
            keys[asked] = np.sort(np.where(rows < 0, REMOVED, self._keys(part[asked], np.maximum(rows, 0))), axis=1)[
                :, :k
            ]
        return keys

    def _keys(self, part: Ints, rows: Ints) -> Ints:
        """Return keys (n, any) of some items (n, any) of each of a chunk's queries."""
        there = torch.from_numpy(np.ascontiguousarray(rows)).to(self.gallery.device)
        vectors = self.gallery.index_select(0, there.view(-1)).double().view(*rows.shape, -1)
        products = torch.bmm(vectors, self.queries[part].double()[:, :, None])[:, :, 0]
        squared = self._norms[0][part, None] + self._norms[1][there] - 2.0 * products
        return np.asarray((self._quanta(squared) << ROW_BITS | there).cpu().numpy())

    def _quanta(self, squared: torch.Tensor) -> torch.Tensor:
        return (squared / self.quantum).round_().clamp_(0, _FARTHEST).long()

    def _removed_pairs(self, part: Ints) -> tuple[Ints, Ints]:
        """Return queries of the chunk and items (any,) that are removed from their gallery."""
        if self.groups is None:
            return (np.arange(len(part)), part) if self.own else (part[:0], part[:0])
        codes, (order, ordered) = self.groups[0][part], self._by_group
        starts = np.searchsorted(ordered, codes, side="left")
        counts = np.searchsorted(ordered, codes, side="right") - starts
        owners = np.repeat(np.arange(len(part)), counts)
        return owners, order[np.arange(len(owners)) + np.repeat(starts - (counts.cumsum() - counts), counts)]

    def _screen(self) -> Shortlists:
        if self._shortlists is None:
            self._shortlists = Shortlists(self.gallery, self._norms[1])
        return self._shortlists

    def _measure(self) -> None:
        norms = _squared_norms(self.gallery)
        self._norms = (norms if self.queries is self.gallery else _squared_norms(self.queries)), norms
        largest = max((float(each.max()) for each in self._norms if len(each)), default=0.0)
        if not all(bool(torch.isfinite(each).all()) for each in self._norms):
            raise ValueError("neighbours of vectors that are not finite were asked for")
        self.quantum = max(largest, 1e-30) * 2.0**-32


def _squared_norms(vectors: torch.Tensor) -> torch.Tensor:
    """Return (N,) float64, a few rows at a time: a copy of all in float64 would be larger than they are."""
    out = torch.empty(len(vectors), dtype=torch.float64, device=vectors.device)
    step = max(1, _CELLS // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        out[start : start + step] = vectors[start : start + step].double().square().sum(dim=1)
    return out


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
