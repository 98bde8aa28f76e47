"""What an embedding head returns.

Legend: B batch, D embedding width, F feature width, h and w pixels of the last level.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class Embedded(NamedTuple):
    """Vectors (B, D) as the embedding layer gives them, not normalised: `SubspacePartition` does that.

    `features` (B, F) are pooled and of unit length, for clustering. `maps` (B, 1, h, w) in (0, 1), or None.
    """

    vectors: torch.Tensor
    features: torch.Tensor
    maps: torch.Tensor | None


class EmbeddingHead(nn.Module):
    """levels -> `Embedded`, by a linear layer whose rows are the embedding dimensions; without one nothing can grow.

    `num_features` is the width of what that layer sees, `dropout` the probability of dropping one of them; the mask is
    drawn by the caller (`trainer.heads.dropout`).
    """

    embedding: nn.Linear | nn.Identity
    num_features: int
    dropout: float
