"""Networks of other libraries as ours: what a pass without arithmetic finds, norms in place, keyed starts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from data_shards.errors import UserError
from trainer.backbones.foreign import draw, probe, replace_norms
from trainer.backbones.norm import FrozenStatsBatchNorm2d, group_norm


class Tiny(nn.Module):
    """Two levels, and a layer that no level needs."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, 4, 3, 2, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01))
        self.second = nn.Conv2d(4, 8, 3, 4, 1)
        self.unused = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> list[Tensor]:
        level = self.first(images)
        return [level, self.second(level)]


def test_a_pass_without_arithmetic_finds_shapes_and_idle_parameters() -> None:
    net = Tiny(1)
    net.first[1].running_mean.fill_(3.0)
    found = probe(net, 1)
    assert found.shapes == [(4, 128, 128), (8, 32, 32)]
    assert found.idle == ["unused.weight", "unused.bias"]
    assert net.first[1].running_mean.tolist() == [3.0] * 4 and net.training
    assert all(p.grad is None and p.device.type == "cpu" for p in net.parameters())


def test_norms_are_replaced_in_place_with_what_belongs_to_learnt_statistics() -> None:
    for make in (FrozenStatsBatchNorm2d, nn.BatchNorm2d):
        net = Tiny()
        names = list(net.state_dict())
        replace_norms(net, make)
        assert type(net.first[1]) is make and net.first[1].eps == 1e-3
        assert list(net.state_dict()) == names
    assert net.first[1].momentum == 0.01
    net = Tiny()
    replace_norms(net, group_norm)
    assert isinstance(net.first[1], nn.GroupNorm) and net.first[1].eps == 1e-5


class NormThenAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        return self.act(super().forward(input))


def test_an_activation_inside_a_norm_stays() -> None:
    net = nn.Sequential(NormThenAct(4))
    names, x = list(net.state_dict()), torch.randn(2, 4, 5, 5)
    expected = net.eval()(x)
    replace_norms(net, FrozenStatsBatchNorm2d)
    assert isinstance(net[0], FrozenStatsBatchNorm2d) and list(net.state_dict()) == names
    torch.testing.assert_close(net(x), expected)


def test_start_is_a_function_of_seed_and_name_whatever_was_drawn_before() -> None:
    with torch.device("meta"):
        first, second = Tiny(), Tiny()
    torch.rand(3)
    third, other = Tiny(), Tiny()
    for net, seed in ((first, 1), (second, 1), (third, 1), (other, 2)):
        replace_norms(net, group_norm)
        draw(net, seed)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]) and torch.equal(value, third.state_dict()[name]), name
    assert not torch.equal(first.second.weight, other.second.weight)


def test_a_parameter_that_nothing_keyed_draws_is_refused() -> None:
    class Positions(Tiny):
        def __init__(self, values: Tensor) -> None:
            super().__init__()
            self.scale = nn.Parameter(values)

    draw(Positions(torch.full((4,), 1e-6)), 0)
    with pytest.raises(UserError, match="'scale'"):
        draw(Positions(torch.randn(4)), 0)
