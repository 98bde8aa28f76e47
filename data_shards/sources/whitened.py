"""Whitened squares of a scan: places that were painted white because a test patch was taken there.

Ordinary background is white as well, in some scans exactly 255 where the sensor was saturated. A painted square
differs from it by its outline. A tissue edge is ragged at the scale of a pixel; a painted edge is a straight line as
long as the square. So a whitened square is a side x side window of which every pixel is exactly white and which has,
along half or more of one of its four sides, pixels that are not exactly white right outside, all on one line. A square
whose sides all lie in saturated background is not told from it; it looks like it, too, so no patch is the worse for it.

The scan is seen once, row by row, since it does not fit into memory.

Legend: W columns of the scan; side of a square in pixels; a box is (top, bottom, left, right), half open.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]


class WhitenedSquares:
    """Finds squares of `side` pixels in a scan of `width` columns; memory is side x width bytes."""

    def __init__(self, width: int, side: int) -> None:
        """Start above the first row."""
        self._side, self._row = side, -1
        self._run = np.zeros(width, dtype=np.int32)  # white pixels without a gap, up to and with this row
        self._recent = np.zeros((side, width), dtype=np.bool_)  # what is not white in the last rows, as a ring
        self._dark = np.zeros(width, dtype=np.int32)  # how many of them, by column
        self._open: list[tuple[int, int]] = []  # columns of the white windows that end in this row

    def feed(self, white: Bools) -> list[Box]:
        """Take the next row (W,), True where it is exactly white; return boxes of squares that are known by now."""
        side = self._side
        found = [box for left, right in self._open for box in self._hanging(left, ~white[left:right])]
        self._row += 1
        self._run = np.where(white, self._run + 1, 0)
        slot = self._row % side
        self._dark += (~white).astype(np.int32) - self._recent[slot]
        self._recent[slot] = ~white
        self._open = _stretches(self._run >= side, side)
        for left, right in self._open:
            if self._row >= side:  # else the edge of the scan is above
                found += self._hanging(left, self._run[left:right] == side)
            found += self._upright(left, right)
        return found

    def _hanging(self, left: int, beyond: Bools) -> list[Box]:
        """Return the windows that end in this row under (or above) the columns where something else begins `beyond`."""
        counts = np.cumsum(np.concatenate([[0], beyond]))
        starts = np.flatnonzero(2 * (counts[self._side :] - counts[: -self._side]) >= self._side)
        if not len(starts):
            return []
        top, bottom = self._row + 1 - self._side, self._row + 1
        return [(top, bottom, left + int(starts[0]), left + int(starts[-1]) + self._side)]

    def _upright(self, left: int, right: int) -> list[Box]:
        """Return the windows at the left and right end of the columns left..right, where a straight edge is."""
        side, rows = self._side, (self._row + 1 - self._side, self._row + 1)
        found = []
        if left > 0 and 2 * self._dark[left - 1] >= side:
            found.append((*rows, left, left + side))
        if right < len(self._dark) and 2 * self._dark[right] >= side:
            found.append((*rows, right - side, right))
        return found


def _stretches(flags: Bools, shortest: int) -> list[tuple[int, int]]:
    """Return (start, stop) of every stretch of True that is `shortest` long or longer."""
    if not flags.any():
        return []
    turns = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    pairs = turns.reshape(-1, 2)
    return [(int(start), int(stop)) for start, stop in pairs if stop - start >= shortest]
