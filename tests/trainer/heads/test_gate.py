"""Gates: the formula with and without a remainder, the trunk computed once, published sizes, any input size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from data_shards.errors import UserError
from trainer.backbones.backbone import Backbone
from trainer.backbones.from_monai import MonaiBackbone
from trainer.backbones.googlenet import GoogLeNet
from trainer.backbones.resnet import ResNet
from trainer.backbones.small import SmallResNet
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.model import EmbeddingModel, count_parameters


def small(**options: Any) -> SmallResNet:
    return SmallResNet((8, 12, 16), (1, 1, 1), seed=3, **options)


def network(backbone: Backbone, mask: gate.Gate | None, num_dims: int = 12) -> EmbeddingModel:
    branches = 1 if mask is None else len(mask.branches)
    return EmbeddingModel(
        backbone, LinearEmbedding(backbone.channels[-1], num_dims, num_branches=branches), mask
    ).eval()


def meta(make: Any, **options: Any) -> EmbeddingModel:
    """Return a large network without memory for its weights; the keyed draws into them go nowhere."""
    with torch.device("meta"):
        backbone = make()
        return network(backbone, gate.stage(backbone, **options), 512)


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (lambda: ResNet(50, stages=4, norm="batch", se=True), {}, 45_731_440),
        (lambda: GoogLeNet(), {"level": 1, "branches": 4, "activation": "relu"}, 10_534_720),
        (lambda: ResNet(50, stages=4, norm="batch"), {"branches": 4}, 47_131_840),
    ],
    ids=["mixed attention", "attention-based ensemble", "ensemble on ResNet-50"],
)
def test_published_parameter_counts(make: Any, options: dict[str, Any], expected: int) -> None:
    assert count_parameters(meta(make, **options)) == expected


def test_published_parameter_counts_of_parts() -> None:
    with torch.device("meta"):
        backbone = ResNet(50, stages=4, norm="batch", se=True)
        assert count_parameters(network(backbone, None, 512)) == 27_088_112
        stages = [count_parameters(backbone.get_submodule(f"layer{i}")) for i in (1, 2, 3, 4)]
        assert stages == [241_200, 1_352_832, 7_891_328, 16_544_128]
        assert count_parameters(backbone) - sum(stages) == 9_536
        assert count_parameters(gate.stage(backbone)) == 18_643_328
        ensemble = gate.stage(GoogLeNet(), level=1, branches=4)
        assert count_parameters(ensemble.base) == 2_816_496
        assert [count_parameters(branch) for branch in ensemble.branches] == [400_800] * 4


def test_levels_at_the_published_size() -> None:
    with torch.device("meta"):
        images = torch.zeros(1, 3, 224, 224)
        backbone = ResNet(50, stages=4, norm="batch", se=True)
        assert [tuple(level.shape[1:]) for level in backbone.eval()(images)] == [
            *((256, 56, 56), (512, 28, 28)),
            *((1024, 14, 14), (2048, 7, 7)),
        ]
        assert [tuple(x.shape[1:]) for x in GoogLeNet().eval()(images)] == [(480, 14, 14), (832, 14, 14), (1024, 7, 7)]


@pytest.mark.parametrize("size", [20, 33, 48])
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("channels", ["one", "all"])
def test_each_branch_sees_the_level_times_its_mask_and_runs_the_rest(size: int, level: int, channels: Any) -> None:
    backbone = small(se=True)
    mask = gate.stage(backbone, level=level, branches=2, channels=channels)
    net, images = network(backbone, mask), torch.randn(2, 3, size, size)
    found = net(images)
    tapped = backbone(images)[level - 1]
    shared = mask.base(tapped)
    for m, branch in enumerate(mask.branches):
        masked = torch.sigmoid(branch(shared))
        assert masked.shape[1] == (1 if channels == "one" else tapped.shape[1])
        assert masked.shape[2:] == tapped.shape[2:]
        x = tapped * masked
        for i in range(level, 3):
            x = backbone.stages[i](x)
        vectors = net.head.embedding(x.mean((2, 3)))
        torch.testing.assert_close(found.vectors[:, 6 * m : 6 * m + 6], vectors)
        assert found.maps is not None
        torch.testing.assert_close(found.maps[:, m], masked.mean(dim=1))


def test_the_trunk_of_all_masks_runs_once() -> None:
    backbone = small()
    mask = gate.stage(backbone, branches=3)
    ran: list[int] = []
    mask.base.register_forward_hook(lambda *_: ran.append(1))
    network(backbone, mask)(torch.randn(2, 3, 24, 24))
    assert len(ran) == 1


def test_the_gate_of_dynamic_subspace_learners_stands_behind_the_last_level() -> None:
    backbone = small()
    mask = gate.convolutions(backbone, hidden=(5, 4))
    net, images = network(backbone, mask), torch.randn(2, 3, 24, 24)
    found, last = net(images), backbone(images)[-1]
    (attention,) = mask(last)
    assert attention.shape == (2, 1, *last.shape[2:])
    torch.testing.assert_close(found.vectors, net.head.embedding((last * attention).mean((2, 3))))
    assert found.maps is not None
    assert 0 < found.maps.min().item() < found.maps.max().item() < 1
    assert not mask.inside


def test_without_a_gate_the_network_is_backbone_and_head_and_nothing_is_idle() -> None:
    backbone = small()
    for mask in (gate.none(backbone), gate.stage(backbone, branches=2), gate.convolutions(backbone, level=2)):
        net = network(backbone, mask)
        net(torch.randn(2, 3, 24, 24)).vectors.sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_masks_start_unlike_each_other_and_alike_for_one_seed() -> None:
    backbone = small()
    for make in (gate.stage, gate.convolutions):
        first, again, other = (make(backbone, branches=2, seed=seed) for seed in (1, 1, 2))
        weights = [[next(branch.parameters()) for branch in made.branches] for made in (first, again, other)]
        assert torch.equal(weights[0][0], weights[1][0]) and torch.equal(weights[0][1], weights[1][1])
        assert not torch.equal(weights[0][0], weights[0][1])
        assert not torch.equal(weights[0][0], weights[2][0])
        assert torch.equal(next(first.base.parameters()), next(again.base.parameters()))


def test_relu_masks_are_not_bounded() -> None:
    mask = gate.convolutions(small(), activation="relu")
    with torch.no_grad():
        mask.branches[0].conv3.bias.fill_(5.0)  # type: ignore[union-attr, operator]
    assert float(mask(torch.randn(1, 16, 4, 4))[0].min()) > 1


class Closed(Backbone):
    """A network whose levels cannot be entered."""

    channels, strides, enterable = (4, 8), (2, 4), False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gate.stage(small(), level=3), "must be 1 to 2"),
        (lambda: gate.stage(small(), level=0), "must be 1 to 2"),
        (lambda: gate.convolutions(small(), level=4), "must be 1 to 3"),
        (lambda: gate.stage(SmallResNet((8,), (1,))), "one level in all"),
        (lambda: gate.convolutions(Closed(), level=1), "cannot be entered"),
        (lambda: gate.stage(MonaiBackbone("resnet18", levels=2)), "no stages to make a mask of"),
    ],
)
def test_impossible_gates_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_network_of_monai_can_be_gated_inside() -> None:
    backbone = MonaiBackbone("resnet18", levels=2, norm="group")
    net = network(backbone, gate.convolutions(backbone, level=1, channels="all", hidden=(4, 4)))
    found = net(torch.randn(2, 3, 32, 32))
    assert found.maps is not None and found.maps.shape == (2, 1, 8, 8)
    assert isinstance(net.gate, nn.Module)
