"""The rounding bounds behind a fast look at rows: norms, and scores that order the centroids but for near ties.

Legend: n rows of a block, F feature width, K centroids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int64]

UNIT = 2.0**-24  # unit roundoff of float32


class Weights:
    """What turns rows into scores that order (K, F) centroids, and how far rounding may lead them astray.

    The mean centroid m and the rows' reference r are taken out: |x - c|^2 = |x - m|^2 + |c'|^2 + 2 (m - r).c' -
    2 (x - r).c' with c' = c - m, and only the last three terms differ between centroids. The weights are -2 c'.
    """

    def __init__(self, centroids: Features, max_norm: float) -> None:
        wide = centroids.astype(np.float64)
        self._mean, self._max_norm = wide.mean(axis=0), max_norm
        self._centred = wide - self._mean
        self.exact = -2.0 * self._centred
        self._farthest = _longest(wide)
        self.keep(self.exact)

    def keep(self, kept: npt.NDArray[Any]) -> None:
        """Take what the screen's precision keeps of the (K, F) exact weights."""
        self._lost = _longest(self.exact - kept)
        self._spread = _longest(kept) + self._lost
        self._tiny = (kept.shape[1] + 8) * 1e-37 * (1.0 + self._spread + self._max_norm)

    def offsets(self, reference: npt.NDArray[np.float64]) -> Features:
        """Return (K,) offsets of the scores of rows less a reference."""
        offsets = np.einsum("ij,ij->i", self._centred, self._centred)
        offsets += 2.0 * (self._centred @ (self._mean - reference))
        return offsets.astype(np.float32)

    def terms(self, reference: npt.NDArray[np.float64], lost: float, last: float) -> tuple[float, float, float, float]:
        """Return how far two scores must be apart to be in order: per squared norm, norm and score, and a constant.

        Rows less the reference lost at most a share `lost` of their norm, weights a known part, and products are added
        up in float32 (twice its unit, since hardware may truncate): relative to the norm. `last` is the unit of what is
        kept of a score. The exact decision rounds too, relative to the squared distance.
        """
        width = len(self._mean) + 8
        share = lost * self._spread + (1.0 + lost) * (self._lost + 2.0 * width * UNIT * self._spread)
        exact = width * 2.0**-49
        distance = self._farthest + float(np.linalg.norm(reference))
        largest = float(np.max(np.abs(self.offsets(reference))))
        constant = 2.0 * last * largest + exact * distance**2 + self._tiny
        return exact, 2.0 * share, last, constant


def pieces(num_rows: int, width: int) -> Iterator[slice]:
    """Yield consecutive rows, some 2**17 numbers at a time: what is done with them in several steps stays in cache."""
    step = max(1, (1 << 17) // max(width, 1))
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


def row_norms(features: Features) -> Features:
    """Return (n,) upper bounds of the Euclidean row norms, rounding included."""
    out = np.empty(len(features), dtype=np.float32)
    for part in pieces(*features.shape):
        np.sqrt(np.einsum("ij,ij->i", features[part], features[part]), out=out[part])
    out *= np.float32(1 + (features.shape[1] + 8) * UNIT)
    out += np.float32(1e-20)
    return out


def shifted_scores(centroids: Features, max_norm: float) -> tuple[Features, Features, np.float32]:
    """Return ((F, K) weights, (K,) offsets, tolerance) so that rows @ weights + offsets orders the centroids.

    The mean centroid m is taken out: |x - c|^2 = |x - m|^2 + (|c'|^2 + 2 m.c' - 2 x.c') with c' = c - m, and only the
    bracket differs between centroids. Its rounding error scales with the *spread* of the centroids, so collapsed
    embeddings do not send every row to the exact pass. Two scores closer than the tolerance may be in either order.
    """
    wide = centroids.astype(np.float64)
    mean = wide.mean(axis=0)
    weights = (-2.0 * (wide - mean)).astype(np.float32)
    centred = weights.astype(np.float64) / -2.0
    # c' is what float32 kept of c - m: the difference of the true scores is made up for in the tolerance.
    lost = float(np.max(np.linalg.norm(wide - mean - centred, axis=1)))
    exact = wide - mean
    offsets = np.einsum("ij,ij->i", exact, exact) + 2.0 * (exact @ mean)
    spread = float(np.max(np.linalg.norm(centred, axis=1)))
    largest = float(np.max(np.abs(offsets)))
    width = centroids.shape[1] + 8
    error = width * UNIT * (2.0 * max_norm * spread + largest) + 2.0 * max_norm * lost + width * 1e-37
    error += width * 2.0**-50 * (max_norm + float(np.linalg.norm(wide, axis=1).max())) ** 2  # of the exact decision
    return np.ascontiguousarray(weights.T), offsets.astype(np.float32), np.float32(2.0 * error * 1.01)


def _longest(vectors: npt.NDArray[Any]) -> float:
    """Return the length of the longest of (K, F) vectors."""
    wide = vectors.astype(np.float64)
    return math.sqrt(float(np.einsum("ij,ij->i", wide, wide).max()))
