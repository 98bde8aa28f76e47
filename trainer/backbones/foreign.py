"""What it takes to train a network of another library as one of ours.

Its norms become ours, its start weights keyed draws, and a pass on the meta device (shapes, no arithmetic) says what
its levels are, and which parameters have no part in the last one: DistributedDataParallel would wait for their
gradients.

Legend: B batch, C channels, H and W pixels, C_i and s_i channels and stride of level i.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from data_shards.errors import UserError
from trainer.backbones.initialise import kaiming_convolutions, torch_default
from trainer.backbones.norm import NormFactory

Dialect = Sequence[
    tuple[str, str]
]  # patterns and what they become, one after the other: our names -> another library's
PROBE_PX = 256  # every stride of use divides it


class Levels(NamedTuple):
    """What a pass through a network found: shapes (C_i, h_i, w_i) for an image of PROBE_PX, and idle parameters."""

    shapes: list[tuple[int, ...]]
    idle: list[str]


@torch.enable_grad()
def probe(net: nn.Module, in_channels: int) -> Levels:
    """Return the levels of a network that maps (B, C, H, W) to a list of tensors, without computing them."""
    net = copy.deepcopy(net).to("meta").eval()
    found = net(torch.zeros(1, in_channels, PROBE_PX, PROBE_PX, device="meta"))
    found[-1].sum().backward()
    idle = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    return Levels([tuple(level.shape[1:]) for level in found], idle)


def replace_norms(net: nn.Module, make_norm: NormFactory) -> None:
    """Put `make_norm(channels)` in the place of every batch norm, under the same name.

    What belongs to learnt statistics is kept (epsilon, momentum), and an activation that timm put inside the norm.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, _like(child, make_norm(child.num_features)))


def _like(old: nn.BatchNorm2d, new: nn.Module) -> nn.Module:
    if "running_var" in dict(new.named_buffers()):
        new.eps = old.eps  # type: ignore[assignment]
    if isinstance(new, nn.BatchNorm2d):
        new.momentum = old.momentum
    activation = getattr(old, "act", None)
    if isinstance(activation, nn.Module):
        new.add_module("act", activation)
        new.register_forward_hook(_activated)
    return new


def _activated(norm: nn.Module, _: object, x: torch.Tensor) -> torch.Tensor:
    return norm.get_submodule("act")(x)  # type: ignore[no-any-return]


def draw(net: nn.Module, seed: int) -> None:
    """Start every convolution and linear layer from keyed draws, by its name; what else there is must be a constant.

    Layers may be on the meta device, and get memory here.

    Raises:
        UserError: a parameter of another kind was drawn at random by the library.
    """
    drawn: set[str] = set()
    for name, layer in net.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            drawn.update(f"{name}.{own}" for own, _ in layer.named_parameters(recurse=False))
            if layer.weight.is_meta:
                layer.to_empty(device="cpu", recurse=False)
    kaiming_convolutions(net, seed, "backbone")
    torch_default(net, seed, "backbone", (nn.Linear,))
    for name, parameter in net.named_parameters():
        if name not in drawn and parameter.min() != parameter.max():
            raise UserError(
                f"its parameter '{name}' is of no convolution, linear layer or norm: nothing keyed draws it"
            )
