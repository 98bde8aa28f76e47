"""Bilinear resampling of uint8 images along maps that keep rows rows and columns columns: crops, zooms, shifts, flips.

A source column then depends on the output column alone, and a row on the row, so two pixels are mixed along x and then
two along y. Each time that is a sum of two weighted rows of memory, which `embedding_bag` makes in one pass; between
the two lies a transposition. It is the function that grid_sample computes with align_corners=False, in less than half
of its time on a CPU (the grid included), with coordinates in float64 rather than float32.

Every sum is one loop over a row of memory, whatever images are beside it, so an image gives the same bits in any batch.

For a CPU: a GPU does grid_sample in one kernel.

Legend: B images, C channels, H x W pixels, S x S pixels of the output, n images of a part.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
_CELLS = 2**18  # numbers that a CPU takes at a time, about: what is read and written on the way stays in the cache


def planes(
    images: Tensor, matrices: Floats, scale: Floats, size: int, padding: str
) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield (part of the images, output channel, (n, S, S) float32) until all of (B, C, H, W) uint8 are resampled.

    matrices: (B, 3, 3) output -> source coordinates, diagonal but for the shifts. scale: factors of the output
    channels, which are as many, or any number made of a single one. padding: as for grid_sample.
    """
    channels, height, width = images.shape[1:]
    step = max(1, _CELLS // (max(height, size) * max(width, size)))
    rows_x, weights_x = _taps(matrices[:, 0, 0], matrices[:, 0, 2], width, size, padding, step)
    rows_y, weights_y = _taps(matrices[:, 1, 1], matrices[:, 1, 2], height, size, padding, step)
    starts = torch.arange(0, 2 * step * size, 2)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        for channel, factor in enumerate(scale.tolist()):
            if channel < channels:
                columns = ordered(images[part, channel].transpose(1, 2)).float()  # (n, W, H)
                mixed = _mixed(columns, rows_x[part], weights_x[part], starts)
                lines = ordered(mixed.transpose(1, 2))  # (n, H, S)
            yield part, channel, _mixed(lines, rows_y[part], weights_y[part] * factor, starts)


def ordered(images: Tensor) -> Tensor:
    """Return a tensor in contiguous memory; numpy transposes bytes in half of torch's time, floats in two thirds."""
    return torch.from_numpy(np.ascontiguousarray(images.numpy())) if images.is_cpu else images.contiguous()


def _taps(slopes: Floats, shifts: Floats, length: int, size: int, padding: str, step: int) -> tuple[Tensor, Tensor]:
    """Return the two of `length` rows that an output row mixes, and their weights: (B, S, 2) each, along one axis.

    slopes, shifts: (B,) of the map from output to source coordinates. Rows are counted through `step` images.
    """
    centres = (2 * np.arange(size) + 1) / size - 1
    places = ((slopes[:, None] * centres + (shifts[:, None] + 1)) * length - 1) / 2
    if padding == "reflection":
        around = np.abs(places + 0.5)
        around -= 2 * length * np.floor(around / (2 * length))
        places = np.minimum(around, 2 * length - around) - 0.5
    if padding != "zeros":
        places = places.clip(0, length - 1)
    low = np.floor(places)
    rows = low.astype(np.int64)[..., None] + np.arange(2)
    weights = np.stack([low + 1 - places, places - low], axis=-1)
    weights[(rows < 0) | (rows >= length)] = 0
    first = length * (np.arange(len(slopes)) % step)
    rows = rows.clip(0, length - 1) + first[:, None, None]
    return torch.from_numpy(rows), torch.from_numpy(weights.astype(np.float32))


def _mixed(lines: Tensor, rows: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Return (n, S, D) sums of two weighted rows of (n, L, D); rows, weights: (n, S, 2); starts: 0, 2, 4, ..."""
    # functional.embedding_bag checks so much that it takes twice as long as this, which it calls; 0 = sums
    size, rows, weights = rows.shape[1], rows.flatten(), weights.flatten()
    sums = torch.embedding_bag(lines.flatten(0, 1), rows, starts[: rows.shape[0] // 2], False, 0, False, weights)[0]
    return sums.view(lines.shape[0], size, lines.shape[2])
