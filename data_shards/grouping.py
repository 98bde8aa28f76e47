"""The rows of every class in every subspace, as one array: a counting sort, a few thousand rows at a time.

A row is looked at three times, and what is kept are 4 bytes of it (8 from 2^31 rows on). Of very many rows nothing is
listed, see `long_grouping`.

Legend: S rows, K subspaces, C classes, G classes of a subspace that are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
_CHUNK = 2**16  # its numbers stay in the cache


class Listing(Protocol):
    """Rows in an order of their own: an array, or what finds them."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any, /) -> Any: ...


@dataclass(frozen=True)
class Grouping:
    """members: rows by subspace, then by class, ascending. bounds: (K, C + 1) where the classes of a subspace begin in
    it, and where the last one ends. classes: (C,) the labels."""

    members: Listing
    bounds: npt.NDArray[np.int64]
    classes: Ints


@dataclass(frozen=True)
class Pool:
    """What one subspace draws from: where its classes (G,) begin in `members`, and how many rows they have; their
    labels; rows of each in a batch, if it is there; classes in a batch; their weights; all rows."""

    subspace: int
    members: Listing
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    classes: Ints
    quotas: npt.NDArray[np.int64]
    per_batch: int
    shares: npt.NDArray[np.float64]

    @property
    def groups(self) -> list[Ints]:
        """The rows of each class."""
        return [self.members[start : start + size] for start, size in zip(self.starts, self.sizes, strict=True)]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return int(self.sizes.sum())


def label_counts(labels: Ints) -> tuple[Ints, npt.NDArray[np.int64]]:
    """Return the labels that occur, ascending, and how often each does."""
    if not len(labels):
        return labels[:0], np.zeros(0, dtype=np.int64)
    least, most = int(labels.min()), int(labels.max())
    if most - least > max(len(labels), _CHUNK):
        found, counts = np.unique(labels, return_counts=True)
        return found, counts.astype(np.int64)
    counts = np.zeros(most - least + 1, dtype=np.int64)
    for start in range(0, len(labels), _CHUNK):
        counts += np.bincount(labels[start : start + _CHUNK] - least, minlength=len(counts))
    present = np.flatnonzero(counts)
    return (present + least).astype(labels.dtype), counts[present]


def numbered(classes: Ints, labels: Ints) -> Ints:
    """Return the places of labels among the ascending classes, of which they are."""
    if len(classes) and int(classes[-1]) - int(classes[0]) == len(classes) - 1:
        return labels - classes[0]
    return np.searchsorted(classes, labels)


def grouped(assignment: Ints | None, labels: Ints, num_subspaces: int) -> Grouping:
    """Return the rows by subspace of `assignment` (S,) (-1 = left out; None: all in subspace 0) and class (S,)."""
    classes, _ = label_counts(labels)
    num_keys = num_subspaces * len(classes)
    kind = np.dtype(np.uint16 if num_keys < 2**16 else np.int64)  # numpy sorts 16 bits by counting
    width = np.dtype(np.int32 if len(labels) < 2**31 else np.int64)
    members, counts = np.empty(len(labels), dtype=width), np.zeros(num_keys + 1, dtype=np.int64)
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(labels), _CHUNK)]
    for chunk in chunks:
        counts += np.bincount(_keys(assignment, labels, classes, chunk, num_keys, kind), minlength=num_keys + 1)
    bounds = np.concatenate([[0], counts.cumsum()])
    places = bounds[:-1].copy()
    for chunk in chunks:
        keys = _keys(assignment, labels, classes, chunk, num_keys, kind)
        here = np.bincount(keys, minlength=num_keys + 1)
        targets = np.repeat(places - (here.cumsum() - here), here)
        targets += np.arange(len(keys))
        members[targets] = np.argsort(keys, kind="stable").astype(width) + width.type(chunk.start)
        places += here
    edges = np.arange(num_subspaces)[:, None] * len(classes) + np.arange(len(classes) + 1)
    return Grouping(members[: bounds[num_keys]], bounds[edges], classes)


def _keys(
    assignment: Ints | None, labels: Ints, classes: Ints, chunk: slice, num_keys: int, kind: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return the number of the group of each row of a chunk, `num_keys` for those that are left out."""
    found = numbered(classes, labels[chunk]).astype(kind)
    if assignment is None:
        return found
    owners = assignment[chunk]
    found += owners.astype(kind) * kind.type(len(classes))
    if len(owners) and owners.min() < 0:
        found[owners < 0] = num_keys
    return found
