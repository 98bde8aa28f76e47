"""Residual blocks with the names torchvision gives their parts, so that its state dicts fit (He et al. 2016).

Legend: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trainer.backbones.norm import NormFactory


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias (a norm follows)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int, norm: NormFactory) -> nn.Sequential | None:
    """Return the projection on the skip path, or None where the identity fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip: (B, C_in, H, W) -> (B, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = norm(width)
        self.downsample = shortcut(in_channels, width, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(skip(x) + branch(x))."""
        skip = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + skip)


class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride, as torchvision does), 1x1: (B, C_in, H, W) -> (B, 4 width, H / stride, ...)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: NormFactory) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return relu(skip(x) + branch(x))."""
        skip = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + skip)


Block = type[BasicBlock] | type[Bottleneck]


def stage(block: Block, in_channels: int, width: int, num_blocks: int, stride: int, norm: NormFactory) -> nn.Sequential:
    """Return `num_blocks` blocks in a row, the first of which carries the stride."""
    layers: list[nn.Module] = [block(in_channels, width, stride, norm)]
    layers += [block(width * block.expansion, width, 1, norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(*layers)
