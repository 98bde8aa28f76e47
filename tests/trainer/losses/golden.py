"""Vectors that every implementation can make without a random stream, and the labels that go with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def vectors(num: int, width: int, a: float, b: float) -> Tensor:
    """Return unit rows (num, width), float64: sin(1 + a i + b k) in row i and column k, made unit."""
    rows = torch.arange(num, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)[None, :]
    return F.normalize(torch.sin(1 + a * rows + b * columns), dim=1)


Z, OTHER, LABELS = vectors(8, 4, 3, 7), vectors(8, 4, 3, 6), torch.arange(8) % 4
