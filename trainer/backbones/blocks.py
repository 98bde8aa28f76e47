"""Residual blocks with the names torchvision gives their parts, so that its state dicts fit (He et al. 2016).

Legend: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trainer.backbones.initialise import kaiming_convolutions
from trainer.backbones.norm import NormFactory


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias (a norm follows)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int, norm: NormFactory) -> nn.Sequential | None:
    """Return the projection on the skip path, or None where the identity fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))


def pointwise(in_channels: int, out_channels: int, norm: NormFactory, seed: int, bias: bool = False) -> nn.Sequential:
    """Return a 1x1 convolution and a norm."""
    made = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=bias), norm(out_channels))
    kaiming_convolutions(made, seed, "pointwise")
    return made


class SqueezeExcitation(nn.Module):
    """Weigh channels by what the whole image holds of them: (B, C, H, W) -> (B, C, H, W).

    Hu et al. 2018, https://arxiv.org/abs/1709.01507: mean over pixels, two layers with a bottleneck of C / 16, sigmoid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times its weights."""
        weights = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip: (B, C_in, H, W) -> (B, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: NormFactory, se: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = norm(width)
        self.se = SqueezeExcitation(width) if se else None
        self.downsample = shortcut(in_channels, width, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(skip(x) + branch(x))."""
        skip = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu((y if self.se is None else self.se(y)) + skip)


class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride, as torchvision does), 1x1: (B, C_in, H, W) -> (B, 4 width, H / stride, ...)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: NormFactory, se: bool = False) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.se = SqueezeExcitation(out_channels) if se else None
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(skip(x) + branch(x))."""
        skip = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu((y if self.se is None else self.se(y)) + skip)


Block = type[BasicBlock] | type[Bottleneck]


def stage(
    block: Block, in_channels: int, width: int, num_blocks: int, stride: int, norm: NormFactory, se: bool = False
) -> nn.Sequential:
    """Return `num_blocks` blocks in a row, the first of which carries the stride."""
    layers: list[nn.Module] = [block(in_channels, width, stride, norm, se)]
    layers += [block(width * block.expansion, width, 1, norm, se) for _ in range(num_blocks - 1)]
    return nn.Sequential(*layers)
