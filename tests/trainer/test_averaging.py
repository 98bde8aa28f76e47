"""The running average against a slow loop, and through growth."""

from __future__ import annotations

import torch
from torch import nn

from trainer.averaging import WeightAverage


def test_average_is_the_recursion_with_a_warm_start() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    expected = model.weight.detach().double().clone()
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(average.values["weight"].double(), expected, rtol=1e-4, atol=1e-5)


def test_applied_swaps_and_swaps_back_even_after_an_error() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.5)
    own, averaged = model.weight.detach().clone(), torch.full((2, 3), 7.0)
    average.values["weight"].copy_(averaged)
    try:
        with average.applied():
            assert torch.equal(model.weight, averaged)
            raise KeyError("x")
    except KeyError:
        pass
    assert torch.equal(model.weight, own)
    assert torch.equal(average.values["weight"], averaged)


def test_growth_moves_rows_and_starts_new_ones_at_the_new_weights() -> None:
    model = nn.Linear(2, 4)
    average = WeightAverage(model, 0.5)
    average.values["weight"].copy_(torch.arange(8.0).reshape(4, 2))
    average.permute_and_reset(["weight"], torch.tensor([2, 0, 1, 3]), [3])
    assert average.values["weight"][:3].tolist() == [[4, 5], [0, 1], [2, 3]]
    assert torch.equal(average.values["weight"][3], model.weight[3])


def test_round_trip() -> None:
    model = nn.Linear(2, 4)
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.weight.mul_(2)
    average.update()
    other = WeightAverage(nn.Linear(2, 4), 0.5)
    other.load_tensors({name: value.clone() for name, value in average.tensors().items()})
    assert other.num_steps == 1
    for name, value in average.values.items():
        assert torch.equal(other.values[name], value)
