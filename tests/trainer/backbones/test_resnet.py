"""ResNets: torchvision's names and sizes, a forward pass written out from the state dict."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.errors import UserError
from trainer.backbones.resnet import ResNet

# Sizes of torchvision's models less their classifiers: 11,689,512 - 513,000 and so on.
WITHOUT_CLASSIFIER = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032}


def written_out(state: dict[str, Tensor], images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
    """The paper's network, from torchvision's keys."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(shape)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(norm(conv(images, "conv1", 2), "bn1").relu(), 3, 2, 1)
    levels = []
    for i, num in enumerate(blocks):
        for j in range(num):
            name, stride = f"layer{i + 1}.{j}", 2 if i and not j else 1
            deep = f"{name}.conv3.weight" in state
            y = norm(conv(x, f"{name}.conv1", 1 if deep else stride), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", stride if deep else 1), f"{name}.bn2")
            if deep:
                y = norm(conv(y.relu(), f"{name}.conv3"), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
        levels.append(x)
    return levels


def with_statistics(net: ResNet) -> dict[str, Tensor]:
    """A state dict as from pretraining: statistics and affine parts that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    state = net.state_dict()
    for name, tensor in state.items():
        if "bn" in name or "downsample.1" in name:
            state[name] = tensor if tensor.ndim == 0 else torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5
    return state


@pytest.mark.parametrize(("depth", "blocks"), [(18, (2, 2, 2)), (50, (3, 4, 6))])
def test_forward_equals_the_network_written_out(depth: int, blocks: tuple[int, ...]) -> None:
    net = ResNet(depth, stages=3)
    state = with_statistics(net)
    net.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    levels = net.train()(images)
    for found, expected in zip(levels, written_out(state, images, blocks), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert [tuple(level.shape[1:]) for level in levels] == [
        (c, 64 // s, 64 // s) for c, s in zip(net.channels, net.strides, strict=True)
    ]


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_sizes_are_those_of_torchvision(depth: int) -> None:
    assert sum(p.numel() for p in ResNet(depth, stages=4, norm="batch").parameters()) == WITHOUT_CLASSIFIER[depth]


def test_other_depths_are_refused() -> None:
    with pytest.raises(UserError, match="depths 18, 34, 50"):
        ResNet(19)


def test_start_is_a_function_of_the_seed() -> None:
    first = ResNet(18, seed=1).state_dict()
    torch.rand(5)
    second, third = ResNet(18, seed=1).state_dict(), ResNet(18, seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], third["conv1.weight"])
