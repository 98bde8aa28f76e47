"""Which patches of a regular grid over a large scan are of use: those with tissue that touch no whitened square.

Legend: p side of a patch, G_y x G_x places of the grid, N places that are kept; W columns of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.decode import UInt8Array, Unreadable
from data_shards.errors import UserError
from data_shards.sources.whitened import Box, WhitenedSquares

TISSUE_BELOW = 220
MAX_PLACES = 1 << 20
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """Patches of `patch` pixels every `stride` pixels, with at least the fraction `tissue` of tissue."""

    patch: int
    stride: int
    tissue: float

    def __post_init__(self) -> None:
        """Raise UserError for numbers that make no grid."""
        if not 16 <= self.patch <= 8000 or self.stride < 1:
            raise UserError(
                f"patch={self.patch} stride={self.stride} make no grid; use a patch of 16 to 8000 pixels and a stride "
                "of 1 or more."
            )
        if not 0 <= self.tissue <= 1:
            raise UserError(f"tissue={self.tissue} is not a fraction from 0 to 1.")


class ScanGrid:
    """The choice for one scan, which it sees in bands of rows from the top."""

    def __init__(self, rows: int, columns: int, grid: Grid, square: int) -> None:
        """`square` is the side of whitened squares in pixels; raises Unreadable for a grid of too many places."""
        self._grid, self._row = grid, 0
        self._ys, self._xs = (np.arange(0, side - grid.patch + 1, grid.stride) for side in (rows, columns))
        if len(self._ys) * len(self._xs) > MAX_PLACES:
            raise Unreadable(f"a stride of {grid.stride} pixels gives more than {MAX_PLACES:,} patches of one scan")
        self._squares = WhitenedSquares(columns, square)
        self._tissue = np.zeros((len(self._ys), len(self._xs)), dtype=np.int64)  # pixels of it, by place
        self._touched = np.zeros_like(self._tissue, dtype=np.bool_)
        self.num_whitened = 0  # boxes of whitened squares so far

    def feed(self, darkest: UInt8Array) -> None:
        """Take the next rows, (rows, W): the darkest channel of every pixel."""
        self._count(darkest < TISSUE_BELOW)
        for row in darkest == 255:
            for box in self._squares.feed(row):
                self._touched[self._places(box)] = True
                self.num_whitened += 1
        self._row += len(darkest)

    def kept(self) -> Ints:
        """Return (N, 2) x and y of the patches to use, row by row."""
        enough = self._tissue >= self._grid.tissue * self._grid.patch**2
        rows, columns = np.nonzero(enough & ~self._touched)
        return np.stack([self._xs[columns], self._ys[rows]], axis=1).astype(np.int64)

    def _count(self, tissue: npt.NDArray[np.bool_]) -> None:
        patch, (first, last) = (
            self._grid.patch,
            _between(self._ys, self._grid.patch, self._row, self._row + len(tissue)),
        )
        for place in range(first, last):
            top = max(0, self._ys[place] - self._row)
            columns = tissue[top : self._ys[place] + patch - self._row].sum(axis=0, dtype=np.int64)
            sums = np.concatenate([[0], np.cumsum(columns)])
            self._tissue[place] += sums[self._xs + patch] - sums[self._xs]

    def _places(self, box: Box) -> tuple[slice, slice]:
        """Return the places whose patch shares a pixel with a box."""
        top, bottom, left, right = box
        patch = self._grid.patch
        return slice(*_between(self._ys, patch, top, bottom)), slice(*_between(self._xs, patch, left, right))


def _between(starts: Ints, length: int, low: int, high: int) -> tuple[int, int]:
    """Return first and last + 1 of the stretches `starts`..+`length` (ascending) that meet low..high."""
    return int(np.searchsorted(starts + length, low, side="right")), int(np.searchsorted(starts, high, side="left"))
