"""The screen by torch, on a CPU or a CUDA device: a matrix product in bfloat16, the two smallest scores, exact sums.

For few centroids k-means is bound by memory. A bfloat16 copy of the rows is read instead of the rows themselves: half
the bytes, and processors have instructions for it (AVX-512 BF16, AMX) that multiply 2 to 10 times faster than float32.
What bfloat16 rounds away is measured once per block and is part of the bound, so no label depends on it; the rows are
centred first, because rounding is relative to their length. Scores are transposed, centroid by centroid: minima over K
are then a few operations on long vectors. The centroid's number is kept in the lowest bits of its score, which makes
the minimum its own argmin. All that stays on the device; (K, F) centroids go up, labels and sums come back.

Legend: n rows of a block, m rows asked about, F feature width, K centroids, P the power of two from K on.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.backend import Loaded, Rows, Screen, Screening
from cluster.screen import UNIT, Features, Ids, Labels, Weights, pieces
from cluster.sums import CHUNK, MOST_TERMS, Partial

_FAR = 3e38  # score of the centroids K to P that do not exist
_SCORES = 1 << 18  # scores at a time: 1 MiB, which stays in cache
_UNIT_BF16 = 2.0**-8


def cuda_is_available() -> bool:
    """Say whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def bfloat16_is_fast() -> bool:
    """Say whether this processor multiplies bfloat16 in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _Content(NamedTuple):
    """Rows (n, F) float32, their centred copy, and its norms (n,)."""

    rows: Tensor
    centred: Tensor
    norms: Tensor


class TorchBackend(Screening):
    """Labels, gaps and sums on the first CUDA device, or on the CPU without one.

    `dtype` of the screen: bfloat16 where the hardware multiplies it, else float32, which needs no copy of the rows.
    """

    def __init__(self, device: str | None = None, dtype: torch.dtype | None = None) -> None:
        self._device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        is_fast = self._device.type == "cuda" or bfloat16_is_fast()
        self._dtype = dtype or (torch.bfloat16 if is_fast else torch.float32)
        self.chunk = CHUNK
        if self._device.type == "cuda":
            # TF32 keeps 10 bits of mantissa: far outside the rounding bound that the screen relies on.
            torch.backends.cuda.matmul.allow_tf32 = False
            # Sums inside a product would otherwise be rounded to bfloat16 between its parts.
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def load(self, block: Features) -> Loaded:
        """Put a block on the device, with a centred copy in the precision of the screen."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # blocks of the object store are read-only, and only read here
            rows = torch.from_numpy(block).to(self._device)
        reference = rows[:CHUNK].mean(dim=0)
        if self._dtype == torch.float32:
            reference = torch.zeros_like(reference)
        norms = torch.empty(len(rows), device=self._device)
        copied = self._dtype != torch.float32
        centred = torch.empty(rows.shape, dtype=self._dtype, device=self._device) if copied else rows
        peaks = torch.zeros(3, device=self._device)  # share lost, norm, magnitude; NaN stays
        for part in pieces(*block.shape):
            exact = rows[part] - reference
            norms[part] = _norms(exact)
            found = [peaks[0], _norms(rows[part]).max(), rows[part].abs().max()]
            if copied:
                centred[part] = exact
                exact -= centred[part]
                found[0] = (_norms(exact) / norms[part]).max()
            peaks = torch.maximum(peaks, torch.stack(found))
        lost, longest, largest = peaks.tolist()
        lost = min(lost, 1.0) + 2.0 * UNIT  # the subtraction of the reference rounds too
        wide = reference.cpu().numpy().astype(np.float64)
        return Loaded(_Content(rows, centred, norms), norms.cpu().numpy(), wide, largest, longest, lost)

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """Put the scores' weights for (K, F) centroids on the device."""
        super().prepare(centroids, max_norm)
        self._seen: Loaded | None = None  # the block that offsets and terms were last made for
        self._scoring = Weights(centroids, max_norm)
        weights = torch.from_numpy(self._scoring.exact).to(self._dtype)
        self._scoring.keep(weights.double().numpy())
        self._weights = weights.to(self._device)
        self._bits = max(len(centroids) - 1, 1).bit_length()
        unit = _UNIT_BF16 if self._dtype == torch.bfloat16 else UNIT
        # Products are rounded to the screen's precision, and scores give their lowest bits away.
        self._last = 1.01 * (unit + 2.0 ** (self._bits - 23) + 8.0 * UNIT)
        self._numbers = torch.arange(len(centroids), dtype=torch.int32, device=self._device)[:, None]
        self.chunk = 1 << 16 if self._device.type == "cuda" else max(512, min(1 << 13, _SCORES >> self._bits))
        self._buffer = torch.full((1 << self._bits, self.chunk), _FAR, device=self._device)

    def screen(self, loaded: Loaded, rows: Rows) -> Screen:
        """Return labels, gaps and undecided pairs of some rows."""
        content: _Content = loaded.content
        at = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self._device)
        if loaded is not self._seen:
            self._seen, self._terms = loaded, self._scoring.terms(loaded.reference, loaded.lost, self._last)
            self._offsets = torch.from_numpy(self._scoring.offsets(loaded.reference)).to(self._device)
        offsets, terms = self._offsets, self._terms
        products = torch.mm(content.centred[at], self._weights.T)
        scores = self._scores(products, offsets)
        best, second = two_smallest(scores)
        mask = (1 << self._bits) - 1
        labels = best.view(torch.int32) & mask
        norms, (square, linear, last, constant) = content.norms[at], terms
        tolerance = (norms * square).add_(linear).mul_(norms).add_(best.abs(), alpha=2.0 * last).add_(constant)
        gaps = second.sub_(best).mul_(1.0 - 2.0 * last).sub_(tolerance)
        undecided = torch.nonzero(gaps <= 0).flatten()
        limit = best[undecided] + tolerance[undecided] * (1.0 + 4.0 * last)
        near = scores[: len(offsets), undecided] <= limit
        pairs = torch.nonzero(near.T)
        return Screen(_array(labels), _array(gaps), _array(undecided[pairs[:, 0]]), _array(pairs[:, 1]))

    def _scores(self, products: Tensor, offsets: Tensor) -> Tensor:
        """Return (P, m) scores that carry their centroid's number in their lowest bits."""
        num = len(offsets)
        scores = self._buffer[:, : len(products)]
        torch.add(products.T.contiguous(), offsets[:, None], out=scores[:num])
        patterns = scores[:num].view(torch.int32)
        patterns &= -1 << self._bits
        patterns |= self._numbers
        return scores

    def add_rows(
        self, partial: Partial, loaded: Loaded, rows: Ids, old: Labels | None, new: Labels, shift: int
    ) -> None:
        """Add rows to the sums (K, F), exactly; see `cluster.sums`."""
        for start in range(0, len(rows), MOST_TERMS):
            part = torch.zeros(partial.sums.shape, dtype=torch.float64, device=self._device)
            for first in range(start, min(start + MOST_TERMS, len(rows)), CHUNK):
                some = slice(first, min(first + CHUNK, start + MOST_TERMS))
                values = loaded.content.rows[torch.from_numpy(rows[some]).to(self._device)].double()
                values *= 2.0**shift
                values.round_()
                part.index_add_(0, torch.from_numpy(new[some]).to(self._device), values)
                if old is not None:
                    part.index_add_(0, torch.from_numpy(old[some]).to(self._device), values, alpha=-1)
            partial.sums[:] += part.to(torch.int64).cpu().numpy()


def two_smallest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the second smallest of every column of (P, m), by a tournament of halves."""
    half = len(scores) // 2
    best = torch.minimum(scores[:half], scores[half:])
    second = torch.maximum(scores[:half], scores[half:])
    while half > 1:
        half //= 2
        losers = torch.maximum(best[:half], best[half:])
        best = torch.minimum(best[:half], best[half:])
        second = torch.minimum(torch.minimum(second[:half], second[half:]), losers)
    return best[0], second[0]


def _norms(rows: Tensor) -> Tensor:
    """Return upper bounds of the row norms, rounding included."""
    return torch.linalg.vector_norm(rows, dim=1).mul_(1.0 + (rows.shape[1] + 8) * UNIT).add_(1e-20)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.cpu().numpy()
    return array
