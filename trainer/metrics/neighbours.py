"""Exact nearest neighbours within a set, a few rows at a time, with an order that nothing can shake.

Float32 distances change their last bits with block size and thread count, and ties then flip neighbours. Here squared
distances are computed in float64, rounded to 2^-32 of the largest squared norm (float64 noise is far below that) and
packed with the row number into one integer: ties go to the lower row, on every machine, for every chunk size.

Legend: N samples, D embedding width, n rows of a chunk, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
_ROW_BITS = 29
_REMOVED = np.iinfo(np.int64).max
_FARTHEST = 2**34 - 1  # of two opposite vectors of the largest norm; one more would not fit beside the row
_MAX_CELLS = 2**24


def neighbours(
    vectors: Array | torch.Tensor, k: int, groups: Array | None = None, chunk: int = 1024
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return rows (N, k) and Euclidean distances (N, k) of the k nearest others of each of (N, D) vectors.

    The sample itself is never its own neighbour; with `groups` (N,), neither is an item of the same group ("" is no
    group). Where fewer than k are left, rows are padded with -1 and distances with infinity.
    """
    space = Space(vectors, groups)
    rows = np.full((space.num_samples, k), -1, dtype=np.int64)
    distances = np.full((space.num_samples, k), np.inf, dtype=np.float32)
    for part, removed in space.chunks(chunk):
        found, squared = space.nearest(part, removed, min(k, space.num_samples))
        rows[part, : found.shape[1]] = found
        distances[part, : found.shape[1]] = np.sqrt(squared)
    return rows, distances


class Space:
    """The gallery and what a chunk of its rows finds in it."""

    def __init__(self, vectors: Array | torch.Tensor, groups: Array | None) -> None:
        self.gallery = torch.as_tensor(vectors).detach().double()
        self.num_samples = len(self.gallery)
        self.squared_norms = self.gallery.square().sum(dim=1)
        largest = float(self.squared_norms.max()) if self.num_samples else 0.0
        if not np.isfinite(largest):
            raise ValueError("neighbours of vectors that are not finite were asked for")
        self.quantum = max(largest, 1e-30) * 2.0**-32
        self.groups = None if groups is None else group_codes(groups)

    def chunks(self, chunk: int) -> Iterator[tuple[slice, npt.NDArray[np.bool_]]]:
        """Yield the rows of a chunk and (n, N) booleans: what is removed from the gallery of each."""
        step = max(1, min(chunk, _MAX_CELLS // max(1, self.num_samples)))
        columns = np.arange(self.num_samples)
        for start in range(0, self.num_samples, step):
            part = slice(start, min(start + step, self.num_samples))
            removed = columns[part, None] == columns[None, :]
            if self.groups is not None:
                removed |= self.groups[part, None] == self.groups[None, :]
            yield part, removed

    def nearest(
        self, part: slice, removed: npt.NDArray[np.bool_], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return rows (n, k), -1 where none is left, and squared distances (n, k) of a chunk's nearest, in order."""
        squared = self.squared_norms[part, None] + self.squared_norms[None, :]
        squared = squared.addmm_(self.gallery[part], self.gallery.T, alpha=-2.0)
        keys = (squared / self.quantum).round_().clamp_(0, _FARTHEST).long()
        keys = (keys << _ROW_BITS) | torch.arange(self.num_samples, device=keys.device)
        keys.masked_fill_(torch.from_numpy(removed).to(keys.device), _REMOVED)
        first = _smallest(keys, k)
        gone = first == _REMOVED
        rows = np.where(gone, -1, first & (2**_ROW_BITS - 1))
        return rows, np.where(gone, np.inf, (first >> _ROW_BITS) * self.quantum)


def group_codes(groups: Array) -> npt.NDArray[np.int64]:
    """Return (N,) integers that are equal for equal group names; "" gets a number of its own every time."""
    names = np.asarray(groups).astype(str)
    codes = np.unique(names, return_inverse=True)[1].astype(np.int64).reshape(-1)
    return np.where(names == "", -1 - np.arange(len(names)), codes)


def _smallest(keys: torch.Tensor, k: int) -> npt.NDArray[np.int64]:
    """Return the k smallest of each row, ascending. On the CPU numpy's vectorised sort beats topk many times over."""
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1, largest=False, sorted=True).values.cpu().numpy()
    array = keys.numpy()
    if k < array.shape[1] // 2:
        array = np.partition(array, k - 1, axis=1)[:, :k]
    return np.sort(array, axis=1)[:, :k]
