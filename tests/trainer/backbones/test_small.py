"""The small network: declared shapes, independence of samples, no idle parameter, half precision."""

from __future__ import annotations

import pytest
import torch

from data_shards.errors import UserError
from trainer.backbones.small import SmallResNet


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_levels_are_what_it_declares(size: int, stem_stride: int) -> None:
    net = SmallResNet((8, 16, 24), (1, 2, 1), in_channels=1, stem_stride=stem_stride)
    levels = net(torch.randn(2, 1, size, size))
    for level, channels, stride in zip(levels, net.channels, net.strides, strict=True):
        assert level.shape == (2, channels, -(-size // stride), -(-size // stride))


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_an_image_does_not_see_its_batch(norm: str) -> None:
    net = SmallResNet((16, 32), (1, 1), norm=norm)  # type: ignore[arg-type]
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(net(images)[-1][1:2], net(images[1:2])[-1], rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient_in_half_precision_and_channels_last() -> None:
    net = SmallResNet().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 28, 28).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        level = net(images)[-1]
    assert level.is_contiguous(memory_format=torch.channels_last)
    level.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


def test_widths_and_blocks_must_pair_up() -> None:
    with pytest.raises(UserError, match="per width"):
        SmallResNet((8, 16), (1,))
