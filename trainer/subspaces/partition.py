"""The cut of an embedding into subspaces: a frozen value that everything else reads.

The same blocks serve loss and normalisation, for any K (the published static variant used two different cuts).

Legend: N vectors, D embedding width, K subspaces, d_k width of subspace k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class SubspacePartition:
    """Contiguous blocks of `widths`; `version` counts every change of the cut."""

    widths: tuple[int, ...]
    version: int = 0

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"every subspace needs at least one dimension, got widths {self.widths}")

    @classmethod
    def equal(cls, num_dims: int, num_subspaces: int) -> SubspacePartition:
        """Return K blocks whose widths differ by at most one, wider ones first."""
        if not 1 <= num_subspaces <= num_dims:
            raise ValueError(f"cannot cut {num_dims} dimensions into {num_subspaces} subspaces")
        base, extra = divmod(num_dims, num_subspaces)
        return cls(tuple(base + (k < extra) for k in range(num_subspaces)))

    @property
    def num_subspaces(self) -> int:
        """K."""
        return len(self.widths)

    @property
    def num_dims(self) -> int:
        """D."""
        return sum(self.widths)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The columns of every subspace."""
        stops = tuple(accumulate(self.widths))
        return tuple(slice(stop - width, stop) for stop, width in zip(stops, self.widths, strict=True))

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cut (N, D) into K views (N, d_k)."""
        return x.split(self.widths, dim=1)

    def block(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Return subspace k of (N, D) as unit rows (N, d_k), at least in float32."""
        return _unit_rows(x[:, self.slices[k]])

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, D) of unit rows in which every block has the same length 1 / sqrt(K).

        So the inner product of two rows is the mean cosine of their blocks: a narrow subspace counts as much as a
        wide one (as published, where the whole has length sqrt(K) instead of 1).
        """
        scale = 1.0 / math.sqrt(self.num_subspaces)
        return torch.cat([_unit_rows(block) for block in self.split(x)], dim=1) * scale

    def grow(self, widths: tuple[int, ...]) -> SubspacePartition:
        """Return the next version with new widths; raises ValueError if D would change."""
        if sum(widths) != self.num_dims:
            raise ValueError(f"widths {widths} do not sum to {self.num_dims} dimensions")
        return SubspacePartition(tuple(widths), self.version + 1)

    def merged(self) -> SubspacePartition:
        """Return the next version with a single block."""
        return self.grow((self.num_dims,))


def _unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Half precision has 3 digits, too few for distances near the margin."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)
