"""Which rows may have changed their label since they were last looked at: the triangle inequality, one bound per row.

A row x with label a keeps it while no other centroid can have become nearer. Seen from a fixed point r, with y = x - r,
the squared distances differ by g_j = |x - c_j|^2 - |x - c_a|^2 = q_j - q_a - 2 y.(c_j - c_a), q = |c - r|^2. When the
centroids move by d, every g_j falls by at most |y| A_a + B_a with A_a = 2 (|d_a| + max |d_j|) and
B_a = max (q_a's growth - q_j's growth), j over the others. So a row whose smallest g was at least `gap` needs no
look until |y| sum(A_a) + sum(B_a) has grown by the gap: Hamerly 2010 (https://doi.org/10.1137/1.9781611972801.12)
without square roots. Bounds never decide a label, they only save work, so shards may have different ones.

Legend: n rows of a block, m of them, F feature width, K centroids.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.screen import Features, Ids, Labels

_ROUNDING = 1e-6  # of a sum of a few float32 products, six times over


class Drift(NamedTuple):
    """How (K, F) centroids moved: by `moves`, their squared norms by `growth` (K,), give or take `error`."""

    moves: npt.NDArray[np.float64]
    growth: npt.NDArray[np.float64]
    reach: npt.NDArray[np.float64]
    error: float
    largest: float

    @classmethod
    def between(cls, old: Features, new: Features) -> Drift:
        """Measure the way from old to new centroids of one shape."""
        before, after = old.astype(np.float64), new.astype(np.float64)
        moves = after - before
        squares = np.einsum("ij,ij->i", after, after)
        growth = np.einsum("ij,ij->i", moves, after + before)
        lengths = np.linalg.norm(moves, axis=1) * (1 + 1e-9)
        largest = float(np.sqrt(squares.max())) + float(lengths.max())
        reach = 2.0 * (lengths + _largest_other(lengths))
        return cls(moves, growth, reach, old.shape[1] * 2.0**-50, largest)


class Bounds:
    """The bounds of one block of rows; nothing is known before the first `store`.

    `room` (n,) is what the smallest gap of a row was, plus what had been spent by then; backends may fill it.
    """

    def __init__(self, norms: Features, reference: npt.NDArray[np.float64], num_centroids: int) -> None:
        self._norms, self._reference = norms, reference
        self._distance = float(np.linalg.norm(reference))
        self.room = np.full(len(norms), -np.inf, dtype=np.float32)
        self._slope, self._shift = np.zeros(num_centroids), np.zeros(num_centroids)

    def move(self, drift: Drift) -> None:
        """Let the centroids move."""
        growth = drift.growth - 2.0 * (drift.moves @ self._reference)
        self._slope += drift.reach
        self._shift += growth + _largest_other(-growth)
        self._shift += drift.error * (drift.largest + self._distance) ** 2

    def due(self, labels: Labels) -> Ids:
        """Return the rows, in order, whose (n,) labels may be out of date."""
        return np.flatnonzero(self.room <= _spent(self._norms, labels, self.spent_above()))

    def store(self, rows: slice | Ids, labels: Labels, gaps: Features) -> None:
        """Take the (m,) labels and gaps that were just found for some rows."""
        self.room[rows] = gaps + _spent(self._norms[rows], labels, self.spent_below())

    def spent_above(self) -> tuple[Features, Features]:
        """Return (K,) slopes and shifts: of its room a row has spent at most norm * slope + shift of its label."""
        return self._tables(1 + _ROUNDING)

    def spent_below(self) -> tuple[Features, Features]:
        """Return (K,) slopes and shifts of what has been spent at least."""
        return self._tables(1 - _ROUNDING)

    def _tables(self, factor: float) -> tuple[Features, Features]:
        shift = self._shift + (factor - 1.0) * np.abs(self._shift)
        return (self._slope * factor).astype(np.float32), shift.astype(np.float32)


def _spent(norms: Features, labels: Labels, tables: tuple[Features, Features]) -> Features:
    slope, shift = tables
    out = slope[labels]
    out *= norms
    out += shift[labels]
    return out


def _largest_other(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return, for each of K values, the largest of the others (0 when there is none)."""
    if len(values) == 1:
        return np.zeros(1)
    first = int(values.argmax())
    out = np.full(len(values), values[first])
    out[first] = np.delete(values, first).max()
    return out
