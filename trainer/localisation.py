"""One-shot localisation: where in other images is what is marked in one?

A pixel's description is the mean of the unit vectors around it, weighted by a bell; the landmark is where a query's
description is nearest to that of the marked place. Chen et al. 2021, https://arxiv.org/abs/2108.09440, show it in a
picture only; window and bell are ours (57 pixels of 448, a training cell; sigma a quarter of it).

Legend: N query images, L landmarks, d channels, S x S pixels, (x, y) pixel coordinates of centres, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """A bell of `size` pixels (odd) and standard deviation `sigma`, whose weights sum to 1."""

    size: int
    sigma: float

    @classmethod
    def for_image(cls, side: int) -> Window:
        """Return the window for images of side x side pixels: an eighth of the side, odd."""
        size = max(3, 2 * (side // 16) + 1)
        return cls(size, size / 4)

    def weights(self) -> Tensor:
        """Return (size,) of one axis; the bell is their outer product."""
        place = torch.arange(self.size, dtype=torch.float32) - self.size // 2
        bell = torch.exp(-(place**2) / (2 * self.sigma**2))
        return bell / bell.sum()


def described(vectors: Tensor, window: Window) -> Tensor:
    """Return descriptions (N, d, S, S), unit over d, of unit vectors (N, d, S, S); outside the image lies nothing."""
    count, half = vectors.shape[1], window.size // 2
    weights = window.weights().to(vectors)
    columns, rows = weights[None, None, :, None].expand(count, 1, -1, 1), weights[None, None, None, :]
    x = F.conv2d(vectors, columns, padding=(half, 0), groups=count)
    x = F.conv2d(x, rows.expand(count, 1, 1, -1), padding=(0, half), groups=count)
    return F.normalize(x, dim=1)


def likeness(support: Tensor, points: Tensor, queries: Tensor, window: Window) -> Tensor:
    """Return maps (N, L, S, S) in [-1, 1]: how like each pixel of `queries` is to each point of `support`.

    `support` (d, S, S) and `queries` (N, d, S, S) are unit vectors of pixels, `points` (L, 2) int64 x and y.

    Raises:
        ValueError: a point lies outside of the support image.
    """
    height, width = support.shape[1:]
    if not bool(((points >= 0) & (points < torch.tensor([width, height], device=points.device))).all()):
        raise ValueError(f"a landmark lies outside of the {width} x {height} pixels of the support image")
    marked = described(support[None], window)[0][:, points[:, 1], points[:, 0]]  # (d, L)
    return torch.einsum("ndhw,dl->nlhw", described(queries, window), marked)


def peaks(maps: Tensor) -> Tensor:
    """Return (N, L, 2) int64 x and y of the highest pixel of maps (N, L, S, S); of equals the first one."""
    highest = maps.flatten(2).argmax(dim=2)
    return torch.stack([highest % maps.shape[3], highest // maps.shape[3]], dim=2)
