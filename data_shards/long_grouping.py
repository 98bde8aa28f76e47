"""The rows of every class in every subspace of a long split, found where they are asked for: no clustering sorts rows.

Clusters come again and again, the classes stay. So rows are sorted by class once per process, block by block, and cut
into pieces of one class and `_PIECE` rows at most. After a clustering one pass counts the rows of each subspace in each
piece; the j-th row of a class in a subspace is then found by a search among the sums of these counts and a look at one
piece. Of 1e8 rows one of 512 ranks asks for 200,000 per epoch: to sort all of them anew takes a core 3.4 s, to count
them 0.35 s, and to find those 0.3 s. What is found is what `grouping.grouped` lists, in the same order.

Legend: S rows, K subspaces, C classes, P pieces, n rows asked for.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from data_shards.grouping import Grouping, Ints, label_counts, numbered

Rows = npt.NDArray[np.int64]
_PIECE = 2**7  # rows that may be looked at to find one
_LOOK = 2**5  # of them at a time
_BLOCK = 2**16  # rows that are sorted together: their numbers take 2 bytes and stay in the cache
_PER_CLASS = 2**6  # or more rows: so many of a class are in a block of very many classes
_AT_ONCE = 2**12  # rows that are found together: what is made of them stays in the cache
_STRIDE = 2**6  # sums of which one is searched, which are then looked at: a search among all misses the cache each time
_classes: list[tuple[Any, ByClass]] = []
_last: list[tuple[Any, Any, int, Grouping]] = []


@dataclass(frozen=True)
class ByClass:
    """The rows of a split, sorted by class within every block of `block` rows.

    classes, counts: (C,) labels and rows of each. inner: (S + some,) the rows, each by its place in its block. codes:
    (S,) the piece of every row, numbered within its block. sizes: (P,) rows of the pieces, as they follow in `inner`.
    first: where those of a block begin. pieces: (P,) their numbers by class, then by block; bounds: (C + 1,) where
    those of a class begin.
    """

    classes: Ints
    counts: Rows
    block: int
    inner: Ints
    codes: Ints
    sizes: Rows
    first: Rows
    pieces: Rows
    bounds: Rows

    @classmethod
    def of(cls, labels: Ints) -> ByClass:
        """Sort rows by their labels (S,)."""
        num_rows, (classes, counts) = len(labels), label_counts(labels)
        block = max(_BLOCK, 1 << (min(_PER_CLASS * len(classes), num_rows) - 1).bit_length())
        inner = np.zeros(num_rows + _LOOK, dtype=np.min_scalar_type(block - 1))
        codes = np.empty(num_rows, dtype=np.min_scalar_type(len(classes) + block // _PIECE))
        owners, sizes = [], []
        for start in range(0, num_rows, block):
            chunk = slice(start, start + block)
            kinds = numbered(classes, labels[chunk]).astype(np.min_scalar_type(len(classes)))
            order = np.argsort(kinds, kind="stable")
            owner, size = _cut(np.bincount(kinds, minlength=len(classes)))
            inner[start : start + len(order)] = order
            codes[chunk][order] = np.repeat(np.arange(len(size), dtype=codes.dtype), size)
            owners.append(owner)
            sizes.append(size)
        first = np.cumsum([0, *(len(each) for each in owners)])
        owner, size = np.concatenate(owners), np.concatenate(sizes)
        bounds = np.concatenate([[0], np.bincount(owner, minlength=len(classes)).cumsum()])
        pieces = np.argsort(owner, kind="stable")
        return cls(classes, counts, block, inner, codes, size, first, pieces, bounds)


class Members:
    """The rows by subspace, then by class, ascending: `grouping.Grouping.members`, of which none is listed."""

    def __init__(self, by_class: ByClass, assignment: Ints | None, num_subspaces: int) -> None:
        """Count the rows of each subspace of `assignment` (S,) (-1 = left out; None: all in subspace 0) in each piece.

        `assignment` is read later, too: nobody may change it.
        """
        self._by_class, self._assignment = by_class, assignment
        self._begins = by_class.sizes.cumsum() - by_class.sizes
        self._sums = _sums(by_class, assignment, num_subspaces)
        self._ends = self._sums[:, -1].copy()
        self._num_rows = int(self.before(np.array([num_subspaces * len(self._begins)]))[0])

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, places: Rows) -> Rows:
        """Return the rows at some places, in the shape of these."""
        flat = places.reshape(-1)
        parts = [self._found(flat[start : start + _AT_ONCE]) for start in range(0, len(flat), _AT_ONCE)]
        return np.concatenate(parts).reshape(places.shape) if parts else places.astype(np.int64)

    def before(self, cells: Rows) -> Rows:
        """Return how many rows there are before some cells; piece p of subspace k, by class, is cell k P + p."""
        return np.where(cells > 0, self._sums.reshape(-1)[cells - 1], 0).astype(np.int64)

    def _found(self, places: Rows) -> Rows:
        """Return the rows at a few places (n,)."""
        wanted = places.astype(self._sums.dtype)
        strides = np.searchsorted(self._ends, wanted, side="right")
        cells = strides * _STRIDE + (self._sums[strides] > wanted[:, None]).argmax(axis=1)
        subspaces, columns = np.divmod(cells, len(self._begins))
        begins, skipped = self._begins[self._by_class.pieces[columns]], places - self.before(cells)
        starts = begins - begins % self._by_class.block
        if self._assignment is None:
            return starts + self._by_class.inner[begins + skipped]
        return self._nth(self._assignment, subspaces.astype(self._assignment.dtype), begins, starts, skipped)

    def _nth(self, assignment: Ints, subspaces: Ints, begins: Rows, starts: Rows, skipped: Rows) -> Rows:
        """Return (n,) the row of a subspace that comes after `skipped` others of it in a piece, which has as many.

        A few rows of the pieces are looked at, then the next few where that did not do.
        """
        windows = sliding_window_view(self._by_class.inner, _LOOK)
        found, left = np.empty_like(begins), np.arange(len(begins))
        while len(left):
            rows = windows[begins[left]] + starts[left, None]
            own = assignment.take(rows, mode="clip") == subspaces[left, None]
            so_far = own.cumsum(axis=1, dtype=np.uint8)
            here = so_far[:, -1] > skipped[left]
            is_next = so_far[here] > skipped[left[here], None].astype(np.uint8)
            found[left[here]] = rows[here, is_next.argmax(axis=1)]
            left = left[~here]
            skipped[left] -= so_far[~here, -1]
            begins[left] += _LOOK
        return found


def by_class(labels: Ints) -> ByClass:
    """Return the rows sorted by labels (S,), what they were before if it is asked for the same array.

    Nobody may change the labels.
    """
    for seen, found in _classes:
        if seen() is labels:
            return found
    _classes.clear()
    _classes.append((weakref.ref(labels), ByClass.of(labels)))
    return _classes[0][1]


def long_grouped(assignment: Ints | None, labels: Ints, num_subspaces: int) -> Grouping:
    """Return `grouping.grouped`, what it was before if it is asked for the same arrays: clusters serve several epochs.

    Nobody may change the arrays; of an assignment that is not read-only nothing is kept.
    """
    for old, seen, number, kept in _last:
        if (None if old is None else old()) is assignment and seen() is labels and number == num_subspaces:
            return kept
    _last.clear()
    rows = by_class(labels)
    members = Members(rows, assignment, num_subspaces)
    bounds = members.before(np.arange(num_subspaces)[:, None] * len(rows.pieces) + rows.bounds)
    found = Grouping(members, bounds, rows.classes)
    if assignment is None or not assignment.flags.writeable:
        old = None if assignment is None else weakref.ref(assignment)
        _last.append((old, weakref.ref(labels), num_subspaces, found))
    return found


def _cut(sizes: Rows) -> tuple[Rows, Rows]:
    """Cut the classes of a block, (C,) rows of each, into pieces: return the class and the rows of each piece."""
    numbers = -(-sizes // _PIECE)
    owner = np.repeat(np.arange(len(sizes)), numbers)
    place = np.arange(len(owner)) - np.repeat(numbers.cumsum() - numbers, numbers)
    size, number = sizes[owner], numbers[owner]
    return owner, (place + 1) * size // number - place * size // number


def _sums(rows: ByClass, assignment: Ints | None, num_subspaces: int) -> Ints:
    """Return running sums (.., _STRIDE) of the rows of each subspace in each piece, by class, then by block."""
    num_rows, num_cells = len(rows.codes), num_subspaces * len(rows.pieces)
    kind = np.dtype(np.int32 if num_rows < 2**31 else np.int64)
    sums = np.full(-(-num_cells // _STRIDE) * _STRIDE, num_rows, dtype=kind)
    counts = rows.sizes[None].astype(kind) if assignment is None else _counts(rows, assignment, num_subspaces, kind)
    sorted_counts = sums[:num_cells].reshape(num_subspaces, -1)
    sorted_counts[len(counts) :] = 0
    np.take(counts, rows.pieces, axis=1, out=sorted_counts[: len(counts)], mode="clip")
    np.cumsum(sums[:num_cells], dtype=kind, out=sums[:num_cells])
    return sums.reshape(-1, _STRIDE)


def _counts(rows: ByClass, assignment: Ints, num_subspaces: int, kind: np.dtype[Any]) -> Ints:
    """Return (K, P) how many rows of each subspace are in each piece, as they follow in `inner`."""
    counts = np.empty((num_subspaces, len(rows.sizes)), dtype=kind)
    for number, start in enumerate(range(0, len(rows.codes), rows.block)):
        chunk, own = slice(start, start + rows.block), slice(rows.first[number], rows.first[number + 1])
        width = int(rows.first[number + 1] - rows.first[number])
        num_keys = (num_subspaces + 1) * width
        keys = assignment[chunk].astype(np.uint16 if num_keys <= 2**16 else np.int64)
        keys += 1  # those that are left out come first
        keys *= width
        keys += rows.codes[chunk].astype(keys.dtype, copy=False)
        counts[:, own] = np.bincount(keys, minlength=num_keys).reshape(-1, width)[1:]
    return counts
