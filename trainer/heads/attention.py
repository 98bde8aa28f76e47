"""Attentive pooling and the embedding layer: last level -> gate -> mean over pixels -> linear.

One gate is shared by all subspaces: it is multiplied onto the features (no residual, no sum to one), and its map is
what weakly supervised segmentation reads (Adiga et al. 2022, https://arxiv.org/abs/2206.09068).

Legend: B batch, C channels, h and w pixels of the last level, F = C feature width, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from data_shards import keyed
from trainer.backbones.initialise import fill_normal, fill_uniform, torch_default
from trainer.heads.embedded import Embedded, EmbeddingHead


class AttentionGate(nn.Module):
    """Three 3x3 convolutions to one channel in (0, 1): (B, C, h, w) -> (B, 1, h, w)."""

    def __init__(self, in_channels: int, hidden: tuple[int, int] = (128, 32), seed: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden[0], 3, padding=1)
        self.conv2 = nn.Conv2d(hidden[0], hidden[1], 3, padding=1)
        self.conv3 = nn.Conv2d(hidden[1], 1, 3, padding=1)
        torch_default(self, seed, "attention")

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        """Return the gate."""
        x = F.relu(self.conv1(level))
        x = F.relu(self.conv2(x))
        return torch.sigmoid(self.conv3(x))


class AttentionEmbedding(EmbeddingHead):
    """Levels -> `Embedded`. Pooling and the embedding layer run in float32 under autocast too: distances need it.

    `dropout` is only a number for the caller, who draws the mask (`trainer.heads.dropout.dropout_keep`).
    `widths`, if given, are the initial subspaces: each block is drawn with its own fan-out, as published.
    """

    def __init__(
        self,
        in_channels: int,
        num_dims: int = 128,
        hidden: tuple[int, int] = (128, 32),
        dropout: float = 0.01,
        attention: bool = True,
        seed: int = 0,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        widths = (num_dims,) if widths is None else tuple(widths)
        if sum(widths) != num_dims:
            raise ValueError(f"widths {widths} do not sum to num_dims {num_dims}")
        self.num_features, self.num_dims, self.dropout = in_channels, num_dims, dropout
        self.gate = AttentionGate(in_channels, hidden, seed) if attention else None
        self.embedding = nn.Linear(in_channels, num_dims)
        for k, block in enumerate(self.embedding.weight.detach().split(widths)):
            std = math.sqrt(2.0 / (in_channels + len(block)))
            fill_normal(block, std, keyed.generator(seed, "init", "embedding", k))
        fill_uniform(self.embedding.bias, 1.0 / math.sqrt(in_channels), keyed.generator(seed, "init", "embedding bias"))

    def forward(self, levels: Sequence[torch.Tensor], keep: torch.Tensor | None = None) -> Embedded:
        """Embed the last level; `keep` (B, F), already scaled by 1 / (1 - p), is multiplied onto the pooled vector."""
        level = levels[-1]
        maps = None if self.gate is None else self.gate(level)
        attended = level if maps is None else level * maps
        with _full_precision(level.device.type):
            pooled = attended.float().mean(dim=(2, 3))
            if keep is not None:
                pooled = pooled * keep.to(pooled.device)
            return Embedded(self.embedding(pooled), F.normalize(pooled, dim=1), maps)


def _full_precision(device_type: str) -> AbstractContextManager[object]:
    """Leave autocast, if we are in it; entering its context for nothing would end up in exported graphs."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
