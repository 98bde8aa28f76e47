"""Starting weights from keyed draws: a function of (seed, parameter name), not of torch's random stream.

So two ranks, two machines and a resumed run start from the same bytes, whatever was drawn before.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from data_shards import keyed


def fill_normal(tensor: torch.Tensor, std: float, generator: np.random.Generator) -> None:
    """Overwrite `tensor` with normal draws of mean 0."""
    draws = generator.standard_normal(tuple(tensor.shape), dtype=np.float32) * np.float32(std)
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(draws))


def fill_uniform(tensor: torch.Tensor, bound: float, generator: np.random.Generator) -> None:
    """Overwrite `tensor` with draws from [-bound, bound)."""
    draws = (generator.random(tuple(tensor.shape), dtype=np.float32) * 2 - 1) * np.float32(bound)
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(draws))


def kaiming_convolutions(module: nn.Module, seed: int, purpose: str) -> None:
    """Draw every convolution as N(0, 2 / fan_out) (He et al. 2015, https://arxiv.org/abs/1502.01852); biases 0."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * math.prod(layer.kernel_size) // layer.groups
            fill_normal(layer.weight, math.sqrt(2.0 / fan_out), keyed.generator(seed, "init", purpose, name))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def torch_default(
    module: nn.Module, seed: int, purpose: str, kinds: tuple[type[nn.Conv2d | nn.Linear], ...] = (nn.Conv2d, nn.Linear)
) -> None:
    """Draw every convolution and linear layer as torch does by default: U(+-1/sqrt(fan_in)), weights and biases."""
    for name, layer in module.named_modules():
        if isinstance(layer, kinds):
            bound = 1.0 / math.sqrt(layer.weight[0].numel())
            fill_uniform(layer.weight, bound, keyed.generator(seed, "init", purpose, name, "weight"))
            if layer.bias is not None:
                fill_uniform(layer.bias, bound, keyed.generator(seed, "init", purpose, name, "bias"))
