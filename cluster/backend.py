"""Where rows and centroids meet: what every backend does, and how those that only screen do it.

A float32 matrix product changes its last bits with block size, thread count and instruction set, so on its own it
would let the number of shards decide a near tie. Every backend first only *screens*: it gives the best centroid and
all that lie within a rigorous rounding bound of it (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
section 3.1). Those few pairs are decided again in float64, row by row, the lower id winning an exact tie. The labels
are therefore one function of (row, centroids), whatever the backend, block or machine.

Legend: n rows of a block, m rows that are asked about, F feature width, K centroids, p candidate pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cluster.bounds import Bounds
from cluster.screen import UNIT, Features, Ids, Labels, pieces
from cluster.sums import CHUNK, Partial, add_chunk

Rows = slice | Ids  # which rows of a block: consecutive ones, or their positions in ascending order

_EXACT_BLOCK = 1 << 16  # numbers per block of the exact pass, which stays in cache


class Screen(NamedTuple):
    """What a fast look at m rows tells.

    labels (m,) and the (row, centroid) pairs (p,), (p,) that rounding leaves undecided. gaps (m,) are lower bounds of
    |x - c_j|^2 - |x - c_label|^2 over the other centroids j, not above zero for undecided rows; None when unknown.
    """

    labels: Labels
    gaps: Features | None
    rows: Ids
    columns: Ids


class Loaded(NamedTuple):
    """A block where a backend works: `content` is the backend's own.

    norms (n,) are upper bounds of |x - reference|, with which `cluster.bounds` tells how far centroids may move.
    `max_abs` is the largest magnitude of a feature (NaN when there is one), `max_norm` an upper bound of |x|, `lost`
    the share of a norm that the screen's precision takes at most.
    """

    content: Any
    norms: Features
    reference: npt.NDArray[np.float64]
    max_abs: float
    max_norm: float
    lost: float = 0.0


class Block:
    """Rows (n, F) where a backend works, their latest labels (None: not yet), and how long these are safe."""

    def __init__(self, features: Features, loaded: Loaded) -> None:
        self.features, self.loaded = features, loaded
        self.labels: Labels | None = None
        self.bounds: Bounds | None = None


class Backend(Protocol):
    """A way to find nearest centroids."""

    def load(self, block: Features) -> Loaded:
        """Move a block to where the work happens."""
        ...

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """Take the (K, F) centroids for the calls to come; `max_norm` bounds the norm of every row."""
        ...

    def relabel(self, block: Block, partial: Partial | None, shift: int) -> None:
        """Bring the labels of a block up to date, and sums and counts with them, as whole numbers of 2**-shift."""
        ...

    def distances(self, features: Features, centroids: Features, labels: Labels | None) -> npt.NDArray[np.float64]:
        """Return (n,) `exact_distances` of rows to the centroids of their labels, to the first without labels."""
        ...


class Screening(ABC):
    """A backend that screens up to `chunk` rows at a time; the rest is the same for all of them."""

    chunk: int

    @abstractmethod
    def screen(self, loaded: Loaded, rows: Rows) -> Screen:
        """Return labels, gaps and undecided pairs of some rows."""

    @abstractmethod
    def load(self, block: Features) -> Loaded:
        """See `Backend`."""

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """See `Backend`."""
        self._centroids = centroids

    def relabel(self, block: Block, partial: Partial | None, shift: int) -> None:
        """See `Backend`."""
        old, bounds, due = block.labels, block.bounds, None
        if old is not None and bounds is not None:
            due = bounds.due(old)
            due = due if 2 * len(due) < len(old) else None  # reading on is twice as fast as picking
        labels = np.empty(len(block.features), dtype=np.int32) if old is None else old
        changes: list[tuple[Ids, Labels, Labels]] = []
        for rows, found in self._look(block, due):
            if old is not None:
                changed = np.flatnonzero(found.labels != labels[rows])
                at = changed + rows.start if isinstance(rows, slice) else rows[changed]
                changes.append((at, labels[at], found.labels[changed]))
            labels[rows] = found.labels
            if bounds is not None and found.gaps is not None:
                bounds.store(rows, found.labels, found.gaps)
        block.labels = labels
        if partial is not None:
            self._add(block, None if old is None else changes, partial, shift)

    def _look(self, block: Block, due: Ids | None) -> Iterator[tuple[Rows, Screen]]:
        """Yield, piece by piece, which rows were looked at (None: all), and their exact labels and gaps."""
        number = len(block.features) if due is None else len(due)
        for start in range(0, number, self.chunk):
            stop = min(start + self.chunk, number)
            piece: Rows = slice(start, stop) if due is None else due[start:stop]
            screen = self.screen(block.loaded, piece)
            if screen.rows.size:
                at = screen.rows + start if due is None else due[start:stop][screen.rows]
                decided, labels = _decide(block.features, self._centroids, at, screen.columns)
                screen.labels[decided - start if due is None else np.searchsorted(due[start:stop], decided)] = labels
            yield piece, screen

    def _add(
        self, block: Block, changes: list[tuple[Ids, Labels, Labels]] | None, partial: Partial, shift: int
    ) -> None:
        """Add all rows of a block (None) or move those that changed."""
        assert block.labels is not None
        num = len(partial.counts)
        if changes is None:
            self.add_rows(partial, block.loaded, np.arange(len(block.labels)), None, block.labels, shift)
            partial.counts[:] += np.bincount(block.labels, minlength=num)
        elif changes:
            rows, old, new = (np.concatenate(parts) for parts in zip(*changes, strict=True))
            self.add_rows(partial, block.loaded, rows, old, new, shift)
            partial.counts[:] += np.bincount(new, minlength=num) - np.bincount(old, minlength=num)

    def add_rows(
        self, partial: Partial, loaded: Loaded, rows: Ids, old: Labels | None, new: Labels, shift: int
    ) -> None:
        """Add rows, as whole numbers of 2**-shift, to the sums of their new labels; take them from the old ones."""
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            taken = None if old is None else old[part]
            add_chunk(partial.sums, loaded.content[rows[part]], taken, new[part], shift)

    def distances(self, features: Features, centroids: Features, labels: Labels | None) -> npt.NDArray[np.float64]:
        """See `Backend`."""
        out = np.empty(len(features))
        for part in pieces(*features.shape):
            out[part] = exact_distances(features[part], centroids[0 if labels is None else labels[part]])
        return out


def exact_distances(rows: Features, centroids: Features) -> npt.NDArray[np.float64]:
    """Return (p,) squared distances of row i to centroid i in float64; each depends on its own pair alone.

    Eight sums of every eighth feature, in order, then halves of them: lloyd.cpp adds in the same order, so they are
    the same bits on every machine.
    """
    difference = rows.astype(np.float64)
    difference -= centroids
    difference *= difference
    width = difference.shape[1]
    total = np.zeros((len(difference), 8))
    for first in range(0, width - width % 8, 8):
        total += difference[:, first : first + 8]
    total[:, : width % 8] += difference[:, width - width % 8 :]
    for half in (4, 2, 1):
        total = total[:, :half] + total[:, half:]
    return total[:, 0]


def _decide(features: Features, centroids: Features, at: Ids, columns: Ids) -> tuple[Ids, Labels]:
    """Return the rows among candidate pairs (at, columns), which come in order of rows, and their nearest centroid."""
    at, columns = _far_left_out(features, centroids, at, columns)
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


def _far_left_out(features: Features, centroids: Features, at: Ids, columns: Ids) -> tuple[Ids, Ids]:
    """Drop the pairs that float32 distances already rule out: most of them, in a third of the time of float64."""
    slack = np.float32(4 * (features.shape[1] + 8) * UNIT)
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
