"""What a backbone is: images -> levels, each made from the one before it, so that a gate can stand between two.

Legend: B batch, C channels, H and W pixels, C_i and s_i channels and stride of level i, counted from 0.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from data_shards.errors import UserError
from trainer.backbones.blocks import pointwise
from trainer.backbones.norm import NormFactory


class Backbone(nn.Module):
    """(B, C, H, W) -> a level (B, C_i, H / s_i, W / s_i) per stage, finest first.

    For `trainer.weights` it may name its `parts`, the modules that it uses whole, and the `dialects` in which other
    libraries spell its parameters. `make_norm` gives its norms, `enterable` says that `level` is there.

    With `recompute` training keeps the levels only, and computes what lies between two of them again for backward
    (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174).
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    make_norm: NormFactory
    enterable = True
    biased = False  # convolutions in front of norms have a bias
    recompute = False

    def level(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Return level i of level i - 1, or of the images if i is 0.

        Raises:
            UserError: it cannot be entered.
        """
        raise UserError(f"a {type(self).__name__} cannot be entered at a level; put the gate behind its last one")

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the levels, finest first."""
        return self.up_to(len(self.channels) - 1, images)

    def up_to(self, last: int, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the levels from 0 to `last`."""
        x, levels = images, []
        for i in range(last + 1):
            x = self._level(i, x)
            levels.append(x)
        return levels

    def beyond(self, i: int, x: torch.Tensor) -> list[torch.Tensor]:
        """Return levels from i on, of level i."""
        levels = [x]
        for behind in range(i + 1, len(self.channels)):
            levels.append(self._level(behind, levels[-1]))
        return levels

    def _level(self, i: int, x: torch.Tensor) -> torch.Tensor:
        if self.recompute and self.training and torch.is_grad_enabled():
            return cast(torch.Tensor, checkpoint(self.level, i, x, use_reentrant=False, preserve_rng_state=False))
        return self.level(i, x)

    def same_size_stage(self, i: int, seed: int) -> nn.Module:
        """Return another stage like that of level i >= 1, (B, C_{i-1}, h, w) -> (B, C_i, h, w), from start weights of
        its own: the trunk of a mask.

        Raises:
            UserError: its stages cannot be had twice.
        """
        raise UserError(f"a {type(self).__name__} has no stages to make a mask of; use model.gate.name convolutions")

    def pointwise(self, in_channels: int, out_channels: int, seed: int) -> nn.Module:
        """Return a 1x1 convolution and a norm, as this network has them."""
        return pointwise(in_channels, out_channels, self.make_norm, seed, self.biased)
