"""The head without an embedding layer: the pooled features are the embedding.

What a classification network has to offer: the layer before its classifier (`trainer/losses/classification.py`).

Legend: B batch, C channels of the last level, D = F = C widths of the embedding and of the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from trainer.heads.embedded import Embedded, EmbeddingHead


class PooledFeatures(EmbeddingHead):
    """Levels -> `Embedded` by the mean over pixels; there are no rows to grow.

    `dropout` is only a number for the caller, who draws the mask. Raises ValueError unless `num_dims` is C,
    and for several branches.
    """

    def __init__(
        self,
        in_channels: int,
        num_dims: int = 128,
        dropout: float = 0.0,
        seed: int = 0,
        widths: Sequence[int] | None = None,
        num_branches: int = 1,
    ) -> None:
        super().__init__()
        if num_branches > 1:
            raise ValueError("the features of several branches are no embedding; use model.head.name linear")
        if num_dims != in_channels:
            raise ValueError(f"model.num_dims must be the {in_channels} channels of the last level, got {num_dims}")
        self.num_features, self.num_dims, self.dropout = in_channels, num_dims, dropout
        self.embedding = nn.Identity()

    def forward(self, branches: Sequence[Sequence[torch.Tensor]], keep: torch.Tensor | None = None) -> Embedded:
        """Pool the last level in float32; `keep` (B, F), already scaled by 1 / (1 - p), is multiplied onto it."""
        ((*_, level),) = branches
        pooled = level.float().mean(dim=(2, 3))
        if keep is not None:
            pooled = pooled * keep.to(pooled.device)
        return Embedded(pooled, F.normalize(pooled, dim=1), None)
