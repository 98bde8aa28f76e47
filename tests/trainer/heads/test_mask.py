"""The mask head: published size, probabilities at the size of the image, also behind a coarser backbone."""

from __future__ import annotations

import pytest
import torch

from trainer.backbones.norm import norm_factory
from trainer.backbones.small import SmallResNet
from trainer.backbones.vgg import VGG
from trainer.heads.mask import MaskHead
from trainer.model import EmbeddingModel, count_parameters


def test_published_parameter_count() -> None:
    with torch.device("meta"):
        assert count_parameters(MaskHead(VGG("tiny").channels, norm_factory("batch"), 512)) == 492_001


@pytest.mark.parametrize("coarse", [False, True])
def test_every_pixel_has_a_probability(coarse: bool) -> None:
    backbone = SmallResNet((4, 8), (1, 1), stem_stride=2, in_channels=1) if coarse else VGG("tiny", "group", 1)
    network = EmbeddingModel(backbone, MaskHead(backbone.channels, norm_factory("group"), 32))
    with torch.autocast("cpu", torch.bfloat16):
        found = network(torch.randn(2, 1, 32, 32))
    assert found.vectors.shape == (2, 32 * 32) and found.vectors.dtype == torch.float32
    assert 0 < found.vectors.min().item() < found.vectors.max().item() < 1
    found.vectors.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_frozen_backbone_keeps_weights_and_statistics() -> None:
    backbone = VGG("tiny", "batch", 1)
    network = EmbeddingModel(backbone, MaskHead(backbone.channels, norm_factory("batch"), 32), freeze_backbone=True)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    network.train()
    network(torch.randn(2, 1, 32, 32)).vectors.sum().backward()
    assert network.head.training and not backbone.training
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
