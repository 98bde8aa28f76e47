"""ResNet-18/34/50, and SE-ResNet-50, cut after a chosen stage, with torchvision's state-dict keys and no unused parts.

The published system taps ResNet-50 after stage 3 but registers and stores stage 4 and the classifier as well; here
what is not used does not exist, so that DDP finds no idle parameter and a checkpoint is a third of the size.
Source: He et al. 2016, https://arxiv.org/abs/1512.03385 (v1.5: the 3x3 of a bottleneck carries the stride); Hu et al.
2018, "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507.

Legend: B batch, C channels, H and W pixels, C_i and s_i channels and stride of level i.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from data_shards.errors import UserError
from trainer.backbones.backbone import Backbone
from trainer.backbones.blocks import BasicBlock, Block, Bottleneck, stage
from trainer.backbones.initialise import kaiming_convolutions
from trainer.backbones.norm import NormFactory, norm_factory

ARCHITECTURES: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(Backbone):
    """(B, C, H, W) -> one level (B, C_i, H / s_i, W / s_i) per stage; `channels` and `strides` describe them.

    `se` weighs the channels of every block; its max pooling has no padding, as in the published SE networks.
    Raises UserError for an unknown depth or number of stages.
    """

    def __init__(
        self,
        depth: int = 50,
        stages: int = 3,
        norm: Literal["frozen", "batch", "group", "sync"] = "frozen",
        in_channels: int = 3,
        seed: int = 0,
        sync_norm: NormFactory | None = None,
        se: bool = False,
    ) -> None:
        super().__init__()
        if depth not in ARCHITECTURES or not 1 <= stages <= 4:
            raise UserError(f"ResNet has depths 18, 34, 50 and 1 to 4 stages; got depth {depth}, stages {stages}.")
        self.block, self.num_blocks = ARCHITECTURES[depth]
        self.make_norm, self.se = norm_factory(norm, sync_norm), se
        self.in_channels = in_channels
        self.channels = tuple(64 * 2**i * self.block.expansion for i in range(stages))
        self.strides = tuple(4 * 2**i for i in range(stages))
        self.parts = ("conv1", "bn1", *(f"layer{i + 1}" for i in range(stages)))
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = self.make_norm(64)
        for i in range(stages):
            self.add_module(f"layer{i + 1}", self._stage(i, 1 if i == 0 else 2))
        kaiming_convolutions(self, seed, "backbone")

    def _stage(self, i: int, stride: int) -> nn.Sequential:
        inputs = (64, *self.channels)
        return stage(self.block, inputs[i], 64 * 2**i, self.num_blocks[i], stride, self.make_norm, self.se)

    def level(self, i: int, x: torch.Tensor) -> torch.Tensor:
        if i == 0:
            x = F.relu(self.bn1(self.conv1(x)))
            x = F.max_pool2d(x, 3, stride=2, padding=0 if self.se else 1, ceil_mode=self.se)
        level: torch.Tensor = self.get_submodule(f"layer{i + 1}")(x)
        return level

    def same_size_stage(self, i: int, seed: int) -> nn.Module:
        made = self._stage(i, stride=1)
        kaiming_convolutions(made, seed, "gate")
        return made
