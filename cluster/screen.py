"""What every way of screening shares: its answer, its interface, and the rounding bound behind it.

Legend: n rows of a block, m rows that are asked about, F feature width, K centroids, p candidate pairs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Ids = npt.NDArray[np.int64]
Rows = slice | Ids  # which rows of a block: consecutive ones, or their positions in ascending order

UNIT = 2.0**-24  # unit roundoff of float32


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
    """

    content: Any
    norms: Features
    reference: npt.NDArray[np.float64]


class Backend(Protocol):
    """A way to screen: `load` moves a block to where the work happens; `screen` is asked for up to `chunk` rows."""

    chunk: int
    kernels: Any  # `cluster.kernels` or None

    def load(self, block: Features) -> Loaded: ...

    def prepare(self, centroids: Features, max_norm: float) -> None: ...

    def screen(self, loaded: Loaded, rows: Rows) -> Screen: ...

    def add_rows(
        self, sums: npt.NDArray[np.int64], loaded: Loaded, rows: Ids, old: Labels | None, new: Labels, shift: int
    ) -> None:
        """Add rows, as whole numbers of 2**-shift, to the sums of their new labels; take them from the old ones."""
        ...


@cache
def compiled() -> Any:
    """Return `cluster.kernels`, None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    from cluster import kernels

    return kernels


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
