"""Mean pooling and the embedding layer: last level -> mean over pixels -> linear.

With the masks of an ensemble there is a last level per learner, and one layer shared by all of them, which gives each
its share of the dimensions.

Legend: B batch, C channels, h and w pixels of the last level, M branches, F = M C feature width, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from data_shards import keyed
from trainer.backbones.initialise import fill_normal, fill_uniform
from trainer.heads.embedded import Embedded, EmbeddingHead


class LinearEmbedding(EmbeddingHead):
    """Levels of each branch -> `Embedded`. Float32 under autocast too: distances need it.

    `dropout` is only a number for the caller, who draws the mask (`trainer.heads.dropout.dropout_keep`). `widths`, if
    given, are the initial subspaces: each block is drawn with its own fan-out, as published (Adiga et al. 2022,
    https://arxiv.org/abs/2206.09068). Raises ValueError unless they sum to D, and unless M divides D.
    """

    def __init__(
        self,
        in_channels: int,
        num_dims: int = 128,
        dropout: float = 0.01,
        seed: int = 0,
        widths: Sequence[int] | None = None,
        num_branches: int = 1,
    ) -> None:
        super().__init__()
        if num_dims % num_branches:
            raise ValueError(f"num_dims {num_dims} is not divisible by the {num_branches} branches of the gate")
        rows = num_dims // num_branches
        widths = (rows,) if widths is None or num_branches > 1 else tuple(widths)
        if sum(widths) != rows:
            raise ValueError(f"widths {widths} do not sum to num_dims {num_dims}")
        self.num_features, self.num_dims, self.dropout = num_branches * in_channels, num_dims, dropout
        self.embedding = nn.Linear(in_channels, rows)
        for k, block in enumerate(self.embedding.weight.detach().split(widths)):
            std = math.sqrt(2.0 / (in_channels + len(block)))
            fill_normal(block, std, keyed.generator(seed, "init", "embedding", k))
        fill_uniform(self.embedding.bias, 1.0 / math.sqrt(in_channels), keyed.generator(seed, "init", "embedding bias"))

    def forward(self, branches: Sequence[Sequence[torch.Tensor]], keep: torch.Tensor | None = None) -> Embedded:
        """Embed the last level of M branches; `keep` (B, F), scaled by 1 / (1 - p), is multiplied onto the means."""
        with _full_precision(branches[0][-1].device.type):
            pooled = torch.cat([levels[-1].float().mean(dim=(2, 3)) for levels in branches], dim=1)
            if keep is not None:
                pooled = pooled * keep.to(pooled.device)
            learners = [self.embedding(each) for each in pooled.chunk(len(branches), dim=1)]
            return Embedded(torch.cat(learners, dim=1), F.normalize(pooled, dim=1), None)


def _full_precision(device_type: str) -> AbstractContextManager[object]:
    """Leave autocast, if we are in it; entering its context for nothing would end up in exported graphs."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
