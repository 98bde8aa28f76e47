"""VGG-16 with batch norm, in three widths, for dense embeddings: levels are taken before each pooling.

The narrow one is the encoder of local discrimination (Chen et al. 2021, https://arxiv.org/abs/2108.09440); the widest
is Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556, without its last pooling and its classifier.
Parameters have torchvision's names, `features.0.weight` and so on.

Legend: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from trainer.backbones.backbone import Backbone
from trainer.backbones.initialise import kaiming_convolutions
from trainer.backbones.norm import NormFactory, norm_factory

FIRST_WIDTH = {"tiny": 16, "small": 32, "full": 64}
MULTIPLES, DEPTHS = (1, 2, 4, 8, 8), (2, 2, 3, 3, 3)


class VGG(Backbone):
    """(B, C, H, W) -> five levels of widths w, 2w, 4w, 8w, 8w at strides 1, 2, 4, 8, 16.

    w is 16 for the size "tiny", 32 for "small" and 64 for "full".
    """

    def __init__(
        self,
        size: Literal["tiny", "small", "full"] = "tiny",
        norm: Literal["frozen", "batch", "group", "sync"] = "batch",
        in_channels: int = 3,
        seed: int = 0,
        sync_norm: NormFactory | None = None,
    ) -> None:
        super().__init__()
        self.make_norm, self.in_channels = norm_factory(norm, sync_norm), in_channels
        self.channels = tuple(FIRST_WIDTH[size] * multiple for multiple in MULTIPLES)
        self.strides = (1, 2, 4, 8, 16)
        self.smallest_px = 16
        self.features = nn.Sequential()
        self.ends: list[range] = []  # the layers of each level; its pooling is the one before them
        width = in_channels
        for channels, depth in zip(self.channels, DEPTHS, strict=True):
            if self.ends:
                self.features.append(nn.MaxPool2d(2))
            start = len(self.features)
            for _ in range(depth):
                self.features.extend(
                    [nn.Conv2d(width, channels, 3, padding=1), self.make_norm(channels), nn.ReLU(inplace=True)]
                )
                width = channels
            self.ends.append(range(start, len(self.features)))
        self.parts = tuple(f"features.{i}" for i in range(len(self.features)))
        kaiming_convolutions(self, seed, "backbone")

    def level(self, i: int, x: torch.Tensor) -> torch.Tensor:
        if i > 0:
            x = F.max_pool2d(x, 2)
        for layer in self.ends[i]:
            x = self.features[layer](x)
        return x
