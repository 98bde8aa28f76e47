"""Norm layers by name: frozen statistics, injected synchronised layer, clear errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from data_shards.errors import UserError
from trainer.backbones.norm import FrozenStatsBatchNorm2d, group_norm, norm_factory


def test_frozen_statistics_never_move_and_the_affine_part_trains() -> None:
    """Equals torch's batch norm in evaluation mode, in training mode too, with its state-dict keys."""
    theirs = nn.BatchNorm2d(6).eval()
    for tensor in (theirs.running_mean, theirs.running_var, theirs.weight.data, theirs.bias.data):
        assert tensor is not None
        tensor.uniform_(0.5, 2)
    ours = FrozenStatsBatchNorm2d(6)
    ours.load_state_dict(theirs.state_dict())
    ours.train()
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    assert ours.weight.grad is not None
    assert ours.bias.grad is not None
    assert torch.equal(ours.running_mean, theirs.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 8, 16, 24, 32, 48, 64, 1024])
def test_group_norm_divides_the_channels(channels: int) -> None:
    layer = group_norm(channels)
    assert channels % layer.num_groups == 0
    assert channels // layer.num_groups >= min(channels, 16)


def test_sync_is_what_the_caller_injects() -> None:
    assert isinstance(norm_factory("sync", nn.InstanceNorm2d)(4), nn.InstanceNorm2d)
    with pytest.raises(UserError, match="process group"):
        norm_factory("sync")
    with pytest.raises(UserError, match="did you mean 'group'"):
        norm_factory("groups")
