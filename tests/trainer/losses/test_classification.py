"""The classifier against torch's own layer and loss, and its keyed start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.losses.classification import Classification


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_equals_a_linear_layer_and_cross_entropy(smoothing: float) -> None:
    ours = Classification(5, 3, label_smoothing=smoothing, seed=4)
    layer = nn.Linear(5, 3)
    layer.load_state_dict(ours.state_dict())
    vectors, labels = torch.randn(7, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    expected = nn.functional.cross_entropy(layer(vectors), labels, label_smoothing=smoothing)
    torch.testing.assert_close(ours(vectors, labels, None), expected)


def test_start_values_are_keyed_and_of_the_right_size() -> None:
    one, same, other = Classification(64, 3, seed=4), Classification(64, 3, seed=4), Classification(64, 3, seed=5)
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    assert one.weight.abs().max() <= 1 / 8
    assert one.weight.abs().max() > 0.9 / 8


def test_a_smoothing_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        Classification(4, 2, label_smoothing=1.0)
