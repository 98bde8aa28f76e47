"""GoogLeNet with batch norm, as the attention-based ensemble uses it, cut into three levels around its tap.

Level 0 is what the masks are laid on (up to the pooling after block 3b), level 1 blocks 4a to 4e, level 2 pooling, 5a
and 5b. Every convolution has a bias and is followed by a norm and a ReLU; there are no auxiliary classifiers, and the
1x1 convolution between the first two of the stem is left out (Kim et al. 2018, "Attention-based Ensemble for Deep
Metric Learning", https://arxiv.org/abs/1804.00382, on Szegedy et al. 2015, https://arxiv.org/abs/1409.4842).

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

# block: channels in, 1x1, 3x3 (reduced to, out), 5x5 (reduced to, out), projection after pooling
BLOCKS = {
    "3a": (192, 64, (96, 128), (16, 32), 32),
    "3b": (256, 128, (128, 192), (32, 96), 64),
    "4a": (480, 192, (96, 208), (16, 48), 64),
    "4b": (512, 160, (112, 224), (24, 64), 64),
    "4c": (512, 128, (128, 256), (24, 64), 64),
    "4d": (512, 112, (144, 288), (32, 64), 64),
    "4e": (528, 256, (160, 320), (32, 128), 128),
    "5a": (832, 256, (160, 320), (32, 128), 128),
    "5b": (832, 384, (192, 384), (48, 128), 128),
}


class ConvNormReLU(nn.Sequential):
    """A convolution with bias, a norm and a ReLU: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, norm: NormFactory, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        super().__init__(conv, norm(out_channels), nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Four ways side by side, their channels in a row: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(
        self,
        in_channels: int,
        one: int,
        three: tuple[int, int],
        five: tuple[int, int],
        pooled: int,
        norm: NormFactory,
    ) -> None:
        super().__init__()
        self.one = ConvNormReLU(in_channels, one, 1, norm)
        self.three = nn.Sequential(ConvNormReLU(in_channels, three[0], 1, norm), ConvNormReLU(*three, 3, norm))
        self.five = nn.Sequential(ConvNormReLU(in_channels, five[0], 1, norm), ConvNormReLU(*five, 5, norm))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), ConvNormReLU(in_channels, pooled, 1, norm))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the ways' channels, one after the other."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


class GoogLeNet(Backbone):
    """(B, C, H, W) -> levels of 480, 832 and 1024 channels at strides 16, 16 and 32."""

    biased = True

    def __init__(
        self,
        norm: Literal["frozen", "batch", "group", "sync"] = "batch",
        in_channels: int = 3,
        seed: int = 0,
        sync_norm: NormFactory | None = None,
    ) -> None:
        super().__init__()
        self.make_norm, self.in_channels = norm_factory(norm, sync_norm), in_channels
        self.channels, self.strides = (480, 832, 1024), (16, 16, 32)
        self.parts = ("stem1", "stem2", "stage3", "stage4", "stage5")
        self.stem1 = ConvNormReLU(in_channels, 64, 7, self.make_norm, stride=2)
        self.stem2 = ConvNormReLU(64, 192, 3, self.make_norm)
        self.stage3, self.stage4, self.stage5 = self._stage("3"), self._stage("4"), self._stage("5")
        kaiming_convolutions(self, seed, "backbone")

    def _stage(self, number: str) -> nn.Sequential:
        return nn.Sequential(
            *(Inception(*shape, self.make_norm) for name, shape in BLOCKS.items() if name.startswith(number))
        )

    def level(self, i: int, x: torch.Tensor) -> torch.Tensor:
        if i == 0:
            x = _pooled(self.stem2(_pooled(self.stem1(x))))
            return _pooled(self.stage3(x))
        level: torch.Tensor = self.stage4(x) if i == 1 else self.stage5(_pooled(x))
        return level

    def same_size_stage(self, i: int, seed: int) -> nn.Module:
        made = self._stage("345"[i])
        kaiming_convolutions(made, seed, "gate")
        return made


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, stride=2, padding=1)
