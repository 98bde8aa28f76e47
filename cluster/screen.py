"""What every way of screening shares: its answer, its interface, and the rounding bound behind it.

Legend: n rows of a block, F feature width, K centroids, p candidate pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

UNIT = 2.0**-24  # unit roundoff of float32


class Screen(NamedTuple):
    """Labels (n,) of a block and the (row, centroid) pairs (p,), (p,) that rounding leaves undecided."""

    labels: Labels
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]


class Backend(Protocol):
    """A way to screen: `load` moves a block to where the work happens, `screen` is called on slices of it."""

    chunk: int

    def load(self, block: Features) -> Any: ...

    def prepare(self, centroids: Features, max_norm: float) -> None: ...

    def screen(self, chunk: Any) -> Screen: ...


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
    return np.ascontiguousarray(weights.T), offsets.astype(np.float32), np.float32(2.0 * error * 1.01)
