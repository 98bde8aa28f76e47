"""k-reciprocal encoding (Zhong et al. 2017, https://arxiv.org/abs/1701.08398), one query alone with its gallery.

    N(x, k)  x and its k nearest items                    R(x, k)  those of N(x, k) that have x in their N(., k)
    R*(x)    R(x, k1), and R(y, k1/2) of each y in R(x, k1) of which two thirds at least lie in R(x, k1)
    V(x)     exp(-d(x, y)) for each y in R*(x), else 0; then the mean of V over x and its k2 - 1 nearest
    d*(p, g) (1 - w) (1 - sum min(V(p), V(g)) / sum max(V(p), V(g))) + w d(p, g),   d = squared distance of the vectors

All of it happens among the query p and its own gallery, which is how the paper defines it. The released code encodes
all queries together with the gallery, so that a score depends on who else asks, and brings V to sum one.

Only what the shortlist of a query needs is encoded. Distances are whole quanta of the space, so that nothing depends on
the machine; ties go to the nearer item, then to the lower row.

Legend: N queries, M items of the gallery, n items or queries of a chunk; an item is its row, or M for a query that is
none of them; W items that are members of some R*.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_shards.errors import UserError
from trainer.metrics.neighbours import REMOVED, ROW_BITS, Array, Bools, Ints, Space

_ROW = 2**ROW_BITS - 1
_MAX_CELLS = 2**27  # one GiB of keys
_QUANTA = 2**22  # distances of a chunk


class Reciprocal:
    """A ranking: the first `shortlist` items of a space's order are put into the order of d*; the others stay behind.

    Memory is one integer for each of the k1 nearest of M items, and of as many more as the largest group has. Time
    grows with M squared for these, and with N: 10 ms per query with the published k1 and k2 (one core, 128 dimensions).

    Raises:
        UserError: it would be more than 2^27 integers.
    """

    def __init__(self, space: Space, k1: int, k2: int, weight: float, shortlist: int) -> None:
        self.space, self.k1, self.k2, self.weight, self.shortlist = space, k1, k2, weight, shortlist
        self.num_queries, self.num_items = space.num_queries, space.num_items
        self.vectors = space.gallery.double().cpu().numpy()
        self.near = self._near(min(k1 + _most_removed(space), space.num_items))

    def _near(self, depth: int) -> Ints:
        """Return keys (M, depth) of the nearest others of every item of the gallery."""
        if self.num_items * depth > _MAX_CELLS:
            raise UserError(
                f"k-reciprocal re-ranking keeps {depth} neighbours (k1, and as many as the largest group that is left"
                f" out) of each of {self.num_items} images, more than {_MAX_CELLS} in all: take a smaller k1, or"
                " query_expansion"
            )
        inside = self.space.inside()
        parts = [inside.first_keys(part, depth) for part in inside.chunks(1024, depth)]
        return np.concatenate(parts) if parts else np.zeros((0, depth), np.int64)

    def num_relevant(self, labels: Array, gallery_labels: Array) -> Ints:
        """Return for each query (N,) how many items have its label, but for those that are removed."""
        return self.space.num_relevant(labels, gallery_labels)

    def chunks(self, chunk: int, k: int, queries: Ints | None = None) -> Iterator[Ints]:
        """Yield (n,) of the queries (None: all), in their order, as many as may be asked at once for k neighbours."""
        return self.space.chunks(min(chunk, max(1, _QUANTA // self.num_items)), k, queries)

    def nearest(self, part: Ints, k: int) -> tuple[Ints, Array]:
        """Return rows (n, k), -1 where none is left, and squared distances (n, k) of the vectors, in the new order."""
        keys = self.space.first_keys(part, min(max(k, self.shortlist, self.k1), self.num_items))
        quanta, removed = self.space.squared(part).cpu().numpy(), self.space.removed(part)
        queries = self.space.queries[part].double().cpu().numpy()
        for i, row in enumerate(part.tolist()):
            query = row if self.space.own else self.num_items
            listed = keys[i, : self.shortlist]
            listed = listed[listed != REMOVED]
            if len(listed):
                alone = _Alone(self, query, queries[i], keys[i], quanta[i], removed[i])
                keys[i, : len(listed)] = listed[np.lexsort((listed, alone.distances(listed)))]
        keys = keys[:, :k]
        gone = keys == REMOVED
        return np.where(gone, -1, keys & _ROW), np.where(gone, np.inf, (keys >> ROW_BITS) * self.space.quantum)


def _most_removed(space: Space) -> int:
    """Return the largest number of items that are removed from the gallery of a query, but for itself."""
    if space.groups is None:
        return 0
    codes, counts = np.unique(space.groups[1], return_counts=True)
    largest = int(counts[np.isin(codes, space.groups[0])].max(initial=0))
    return max(largest - int(space.own), 0)


class _Alone:
    """A query with its gallery and nothing else.

    `vector` (D,) of the query, `keys` its plain order, `quanta` (M,) its distances, `removed` (M,) what is left out.
    """

    def __init__(
        self, ranking: Reciprocal, query: int, vector: Array, keys: Ints, quanta: Ints, removed: Bools
    ) -> None:
        self.ranking, self.query, self.vector = ranking, query, vector
        self.own_keys = _padded(keys, ranking.k1)
        self.quanta = np.append(quanta, 0)
        self.removed = np.append(removed, False)
        self.removed[query] = False
        self.foreign = query == ranking.num_items
        self.changed = self.foreign or bool(self.removed.any())

    def distances(self, listed: Ints) -> Array:
        """Return d* (n,) of the items with the keys `listed` (n,), in whole quanta."""
        weight, quantum = self.ranking.weight, self.ranking.space.quantum
        jaccard = self._jaccard(np.append(self.query, listed & _ROW))
        return np.round((1 - weight) * jaccard / quantum + weight * (listed >> ROW_BITS))

    def _jaccard(self, items: Ints) -> Array:
        """Return the Jaccard distance (n,) of the first of (1 + n,) items to each of the others."""
        rows, there = self._nearest(items, self.ranking.k2 - 1)
        encoded, places = np.unique(rows, return_inverse=True)
        places, counts = places.reshape(rows.shape), there.sum(axis=1)
        values = self._encoded(encoded)
        columns = np.flatnonzero((values[places[0]] * there[0, :, None]).any(axis=0))
        means = (values[:, columns][places] * there[..., None]).sum(axis=1) / counts[:, None]
        sums = (values.sum(axis=1)[places] * there).sum(axis=1) / counts
        shared = np.minimum(means[0], means[1:]).sum(axis=1)
        return 1 - shared / (sums[0] + sums[1:] - shared)

    def _encoded(self, items: Ints) -> Array:
        """Return V (n, W) of items before the mean."""
        members, columns = self._expanded(items)
        ones, others = np.nonzero(members)
        apart = self._vectors(items)[ones] - self._vectors(columns)[others]
        quantum = self.ranking.space.quantum
        values = np.zeros(members.shape)
        values[ones, others] = np.exp(-np.round((apart * apart).sum(axis=1) / quantum) * quantum)
        return values

    def _expanded(self, items: Ints) -> tuple[Bools, Ints]:
        """Return R* as booleans (n, W), and what its columns are (W,)."""
        rows, there = self._reciprocal(items, self.ranking.k1)
        owners, slots = np.nonzero(there)
        inner, which = np.unique(rows[owners, slots], return_inverse=True)
        half, half_there = self._reciprocal(inner, self.ranking.k1 // 2)
        columns = np.unique(np.append(inner, half))
        members = np.zeros((len(items), len(columns)), dtype=bool)
        members[owners, np.searchsorted(columns, inner)[which]] = True
        candidates, valid = np.searchsorted(columns, half)[which], half_there[which]
        shared = (members[owners[:, None], candidates] & valid).sum(axis=1)
        valid &= (3 * shared >= 2 * valid.sum(axis=1))[:, None]
        pairs, slots = np.nonzero(valid)
        members[owners[pairs], candidates[pairs, slots]] = True
        return members, columns

    def _reciprocal(self, items: Ints, k: int) -> tuple[Ints, Bools]:
        """Return N(x, k) of items as rows (n, 1 + k), and which of them are in R(x, k)."""
        rows, there = self._nearest(items, k)
        if k:
            others, places = np.unique(rows[:, 1:], return_inverse=True)
            farthest = self._keys(others)[:, k - 1][places.reshape(len(rows), k)]
            seen_from_there = (self._keys(items)[:, :k] & ~_ROW) | items[:, None]
            there[:, 1:] &= seen_from_there <= farthest
        return rows, there

    def _nearest(self, items: Ints, k: int) -> tuple[Ints, Bools]:
        """Return N(x, k) of items as rows (n, 1 + k), x first, and which are there: the gallery may be small."""
        keys = self._keys(items)[:, :k]
        there = np.column_stack([np.ones(len(items), dtype=bool), keys != REMOVED])
        return np.where(there, np.column_stack([items, keys & _ROW]), items[:, None]), there

    def _keys(self, items: Ints) -> Ints:
        """Return keys (n, k1) of the nearest others of items, REMOVED at the end."""
        keys = self.ranking.near[np.minimum(items, self.ranking.num_items - 1)]
        if self.changed:
            if self.foreign:
                keys = np.column_stack([keys, (self.quanta[items] << ROW_BITS) | self.query])
            gone = self.removed[np.where(keys == REMOVED, self.query, keys & _ROW)]
            keys = np.sort(np.where(gone, REMOVED, keys), axis=1)
        keys = _padded(keys, self.ranking.k1)
        keys[items == self.query] = self.own_keys
        return keys

    def _vectors(self, items: Ints) -> Array:
        vectors = self.ranking.vectors[np.minimum(items, self.ranking.num_items - 1)]
        vectors[items == self.query] = self.vector
        return vectors


def _padded(keys: Ints, width: int) -> Ints:
    """Return a copy of keys (..., any) with `width` columns."""
    missing = max(width - keys.shape[-1], 0)
    return np.pad(keys[..., :width], [(0, 0)] * (keys.ndim - 1) + [(0, missing)], constant_values=REMOVED)
