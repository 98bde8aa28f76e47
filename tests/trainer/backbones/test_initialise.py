"""Keyed starting weights: distribution, and independence of torch's random stream."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import nn

from trainer.backbones.initialise import kaiming_convolutions, torch_default


def values(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().ravel()


def test_kaiming_has_the_spread_of_fan_out() -> None:
    layer = nn.Conv2d(16, 32, 3)
    kaiming_convolutions(layer, 0, "test")
    assert stats.kstest(values(layer.weight), "norm", args=(0, np.sqrt(2 / (32 * 9)))).pvalue > 1e-3


def test_torch_default_is_uniform_with_the_bound_of_fan_in() -> None:
    layer = nn.Conv2d(16, 32, 3)
    torch_default(layer, 0, "test")
    bound = 1 / np.sqrt(16 * 9)
    assert stats.kstest(values(layer.weight), "uniform", args=(-bound, 2 * bound)).pvalue > 1e-3
    assert layer.bias is not None
    assert np.abs(values(layer.bias)).max() <= bound


def test_layers_of_one_shape_differ_and_the_stream_of_torch_plays_no_part() -> None:
    nets = []
    for seed in (0, 99):
        torch.manual_seed(seed)
        nets.append(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)))
        torch_default(nets[-1], 5, "test")
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)
    assert not torch.equal(nets[0][0].weight, nets[0][1].weight)
