"""Coarse maps -> maps of the evaluation image's size.

Legend: N maps, h x w pixels of the network's last level, S x S pixels of the evaluation image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scale = Literal["minmax", "none"]
_ROUNDING = 1e-5  # relative; a hundred times float32's


def upsampled(maps: Tensor, size: int) -> Tensor:
    """Return (N, S, S) float32 of (N, h, w), bilinear between the centres of the coarse pixels."""
    return F.interpolate(maps.float()[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]


def scaled(maps: Tensor, scale: Scale) -> Tensor:
    """Return (N, S, S) with every map stretched over [0, 1], or left alone; a map of one value becomes 0.

    One value is what does not differ by more than rounding: interpolation alone makes 0.7 and 0.7 + 1e-7 of 0.7, which
    stretched would be a chessboard.
    """
    if scale == "none":
        return maps
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    flat = high - low <= _ROUNDING * torch.maximum(high.abs(), low.abs())
    return torch.where(flat, torch.zeros_like(maps), (maps - low) / (high - low))


def full_size(maps: Tensor, size: int, scale: Scale) -> Tensor:
    """Return (N, S, S) float32 of (N, h, w): upsampled first, then scaled, so that 0 and 1 are reached."""
    return scaled(upsampled(maps, size), scale)
