"""The decoder of dense heads: levels -> one feature map at the resolution of the finest level.

A U-Net's (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597) with nearest upsampling, as local discrimination
has it (Chen et al. 2021, https://arxiv.org/abs/2108.09440).

Legend: B batch, C_i channels of level i, h_i x w_i its pixels, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from trainer.backbones.norm import NormFactory


def conv_norm_relu(in_channels: int, out_channels: int, norm: NormFactory) -> nn.Sequential:
    """Return a 3x3 convolution with bias, a norm and a ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), norm(out_channels), nn.ReLU(inplace=True))


class Decoder(nn.Module):
    """L levels (B, C_i, h_i, w_i), finest first -> (B, 2 C_0, h_0, w_0).

    From the coarsest on: up to the size of the next finer level, joined with it, then two convolutions, to its channels
    and to those of the level after it. The finest is joined only. A single level is passed on, (B, C_0, h_0, w_0).
    """

    def __init__(self, channels: Sequence[int], norm: NormFactory) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        coming = channels[-1]
        for i in range(len(channels) - 2, 0, -1):
            widen = conv_norm_relu(coming + channels[i], channels[i], norm)
            self.steps.append(nn.Sequential(widen, conv_norm_relu(channels[i], channels[i - 1], norm)))
            coming = channels[i - 1]
        self.out_channels = coming + channels[0] if len(channels) > 1 else coming

    def forward(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the feature map."""
        *finer, x = levels
        for i, level in enumerate(reversed(finer)):
            x = torch.cat([F.interpolate(x, level.shape[2:], mode="nearest"), level], dim=1)
            if i < len(self.steps):
                x = self.steps[i](x)
        return x
