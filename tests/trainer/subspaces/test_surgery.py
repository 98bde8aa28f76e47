"""Row surgery: permutations, keyed resets, moments of real optimisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from data_shards import keyed
from trainer.subspaces.surgery import permute_and_reset_moments, permute_rows, reset_rows_xavier

OPTIMISERS: list[Callable[..., torch.optim.Optimizer]] = [
    torch.optim.Adam,
    lambda p, lr: torch.optim.AdamW(p, lr, amsgrad=True),
    lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    lambda p, lr: torch.optim.RMSprop(p, lr, momentum=0.9, centered=True),
    torch.optim.Adagrad,
    torch.optim.Adamax,
]


def test_permute_rows_gathers_and_leaves_the_source() -> None:
    rows = torch.arange(12.0).reshape(4, 3)
    found = permute_rows(rows, [2, 0, 3, 1])
    assert found.tolist() == [rows[i].tolist() for i in (2, 0, 3, 1)]
    assert rows[0, 0] == 0
    for wrong in ([0, 1, 1, 2], [0, 1, 2], [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="not a permutation"):
            permute_rows(rows, wrong)


def test_reset_rows_have_the_stated_spread_and_leave_the_others() -> None:
    layer = nn.Linear(500, 40)
    before = layer.weight.detach().clone()
    rows = list(range(20, 40))
    reset_rows_xavier(layer.weight, layer.bias, rows, keyed.generator(0, "growth", 7))
    assert torch.equal(layer.weight[:20], before[:20])
    drawn = layer.weight[20:].detach().double().numpy().ravel()
    assert stats.kstest(drawn, "norm", args=(0, np.sqrt(2 / (500 + 20)))).pvalue > 1e-3
    assert layer.bias[20:].abs().max() <= 1 / np.sqrt(500)


def test_reset_is_a_function_of_the_key() -> None:
    layers = [nn.Linear(8, 6), nn.Linear(8, 6)]
    for layer in layers:
        reset_rows_xavier(layer.weight, layer.bias, [1, 4], keyed.generator(3, "growth", 1))
    for name in ("weight", "bias"):
        a, b = (getattr(layer, name)[[1, 4]] for layer in layers)
        assert torch.equal(a, b)
    before = layers[0].weight.detach().clone()
    reset_rows_xavier(layers[0].weight, None, [], keyed.generator(3, "growth", 1))
    assert torch.equal(layers[0].weight, before)


@pytest.mark.parametrize("make", OPTIMISERS)
def test_a_permuted_layer_trains_on_as_the_permuted_original(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Permute weights and moments half-way, and the end is the permuted end of an undisturbed run."""
    permutation = torch.tensor([3, 1, 4, 0, 2])
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(6, 4, 7, generator=generator)
    targets = torch.randn(6, 4, 5, generator=generator)
    ends = []
    for moved in (False, True):
        layer = nn.Linear(7, 5)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 35).reshape(5, 7))
            layer.bias.zero_()
        optimiser = make(layer.parameters(), lr=0.05)
        for step in range(6):
            if moved and step == 3:
                for parameter in layer.parameters():
                    parameter.data.copy_(permute_rows(parameter, permutation))
                    permute_and_reset_moments(optimiser.state[parameter], permutation, [])
            target = targets[step][:, permutation] if moved and step >= 3 else targets[step]
            optimiser.zero_grad()
            (layer(data[step]) - target).square().sum().backward()
            optimiser.step()
        ends.append(layer.weight.detach())
    torch.testing.assert_close(ends[1], ends[0][permutation], rtol=1e-5, atol=1e-6)


def test_reset_rows_lose_their_moments_and_storage_stays() -> None:
    moment = torch.arange(1.0, 13.0).reshape(4, 3)
    address = moment.data_ptr()
    state: dict[str, Any] = {"exp_avg": moment, "step": torch.tensor(7.0)}
    permute_and_reset_moments(state, [3, 2, 1, 0], [2, 3])
    assert state["exp_avg"].tolist() == [[10, 11, 12], [7, 8, 9], [0, 0, 0], [0, 0, 0]]
    assert state["exp_avg"].data_ptr() == address
    assert state["step"] == 7


def test_an_unknown_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="'novel'"):
        permute_and_reset_moments({"novel": torch.zeros(4, 2)}, [0, 1, 2, 3], [])
