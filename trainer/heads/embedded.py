"""What an embedding head takes and returns.

Legend: B batch, C_i channels of level i, D embedding width, F feature width, M branches of the gate, h and w pixels
of a level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn


class Embedded(NamedTuple):
    """Vectors (B, D) as the embedding layer gives them, not normalised: `SubspacePartition` does that.

    `features` (B, F) are pooled and of unit length, for clustering. `maps` (B, M, h, w) are the masks of the gate, the
    mean of theirs where they have several channels; None without one.
    """

    vectors: torch.Tensor
    features: torch.Tensor
    maps: torch.Tensor | None


class EmbeddingHead(nn.Module, ABC):
    """Levels (B, C_i, h_i, w_i) of each branch, finest first -> `Embedded` without maps, by a linear layer whose rows
    are the embedding dimensions; without one, or with several branches, nothing can grow.

    `num_features` is the width of what that layer sees, `dropout` the probability of dropping one of them; the mask is
    drawn by the caller (`trainer.heads.dropout`).
    """

    embedding: nn.Linear | nn.Identity
    num_features: int
    dropout: float

    @abstractmethod
    def forward(self, branches: Sequence[Sequence[torch.Tensor]], keep: torch.Tensor | None = None) -> Embedded:
        """Embed the branches; `keep` (B, F) is multiplied onto the pooled features."""
