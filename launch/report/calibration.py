"""How far a vote of the neighbours can be trusted: how often it is right, by how many of them agree.

Legend: N evaluated images, k neighbours, n queries that count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from launch.report import figures, theme
from launch.report.collect import Arrays

NUM_BINS = 10


@dataclass(frozen=True)
class Votes:
    """Of every query the share of neighbours that the winning class has, and whether it is the query's own."""

    shares: np.ndarray  # (n,) in (0, 1]
    right: np.ndarray  # (n,) bool

    def bins(self) -> list[tuple[float, float, int]]:
        """Return (mean share, rate of right votes, queries) of ten equal ranges of the share, but for empty ones."""
        place = np.minimum((self.shares * NUM_BINS - 1e-9).astype(int), NUM_BINS - 1)
        chosen = [place == b for b in range(NUM_BINS)]
        return [(float(self.shares[c].mean()), float(self.right[c].mean()), int(c.sum())) for c in chosen if c.any()]

    def error(self) -> float:
        """Return the expected calibration error: mean of |rate - share| over queries (Naeini et al. 2015)."""
        return sum(count * abs(rate - share) for share, rate, count in self.bins()) / max(len(self.shares), 1)


def neighbour_votes(arrays: Arrays) -> Votes:
    """Count the classes of each query's neighbours; the class of the nearest wins a tie, as in `subspace search`."""
    used = arrays.queries()
    found = arrays.neighbours[used]
    classes = np.where(found >= 0, arrays.labels[np.maximum(found, 0)], -1)
    counts = np.zeros(classes.shape, dtype=np.int64)
    for column in classes.T:
        counts += (classes == column[:, None]) & (column[:, None] >= 0)
    winner = np.argmax(np.where(found >= 0, counts, -1), axis=1)[:, None]
    won = np.take_along_axis(counts, winner, 1)[:, 0]
    shares = won / np.maximum((found >= 0).sum(axis=1), 1)
    return Votes(shares, np.take_along_axis(classes, winner, 1)[:, 0] == arrays.labels[used])


def calibration_figure(votes: Votes, width: float = figures.NARROW) -> Figure | None:
    """Rate of right votes against the share of neighbours that agree; on the dotted line a vote means what it says."""
    if not len(votes.shares):
        return None
    figure, axes = theme.new_figure(width, 3.0)
    shares, rates, counts = (np.array(column) for column in zip(*votes.bins(), strict=True))
    axes.bar(shares, rates, width=0.08, color=theme.ACCENT, linewidth=0)
    axes.plot([0, 1], [0, 1], color=theme.INK, linewidth=1.0, linestyle=(0, (2, 3)), zorder=3)
    for share, rate, count in zip(shares, rates, counts, strict=True):
        axes.text(share, rate + 0.015, f"{count:,}", ha="center", va="bottom", color=theme.MUTED, fontsize=7.5)
    axes.set_title("Votes of the neighbours")
    axes.set_xlim(0, 1.06)
    axes.set_ylim(0, 1.1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("share of the neighbours that agree")
    axes.set_ylabel("right votes")
    return figure
