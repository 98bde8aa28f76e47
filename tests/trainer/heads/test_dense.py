"""The dense head and its decoder: published sizes, what a pixel is, sums over pixels, half precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.backbones.norm import norm_factory
from trainer.backbones.vgg import VGG
from trainer.heads.decoder import Decoder
from trainer.heads.dense import DenseEmbedding

NORM = norm_factory("batch")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(VGG("tiny")) == 922_896
        assert count(VGG("small")) == 3_684_384
        channels = VGG("tiny").channels
        assert [count(DenseEmbedding(channels, NORM, num_clusters=k)) for k in (0, 16, 8)] == [
            503_408,
            510_384,
            506_320,
        ]


def test_levels_lie_before_the_poolings() -> None:
    levels = VGG("tiny", in_channels=1).eval()(torch.randn(1, 1, 48, 32))
    assert [tuple(level.shape[1:]) for level in levels] == [
        *((16, 48, 32), (32, 24, 16), (64, 12, 8)),
        *((128, 6, 4), (128, 3, 2)),
    ]


@pytest.mark.parametrize("size", [(48, 32), (50, 37)])
def test_every_pixel_has_a_unit_vector_and_clusters_that_sum_to_one(size: tuple[int, int]) -> None:
    backbone = VGG("tiny", in_channels=1, norm="group")
    head = DenseEmbedding(backbone.channels, norm_factory("group"), width=6, num_clusters=4, grid=4)
    levels = backbone(torch.randn(2, 1, *size))
    vectors, clusters = head.pixels(levels)
    assert vectors.shape == (2, 6, *size)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2, *size))
    assert clusters is not None and clusters.shape == (2, 4, *size)
    torch.testing.assert_close(clusters.sum(dim=1), torch.ones(2, *size))
    found = head([levels])
    assert found.vectors.shape == (2, head.num_dims) and found.features.shape == (2, 6)
    parts = head.layout.unpack(found.vectors)
    torch.testing.assert_close(parts.patches.norm(dim=2), torch.ones(2, 16))
    torch.testing.assert_close(parts.regions.norm(dim=2), torch.ones(2, 4))
    found.vectors.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_rows_are_float32_under_autocast() -> None:
    backbone = VGG("tiny", in_channels=1, norm="group")
    head = DenseEmbedding(backbone.channels, norm_factory("group"), width=6, num_clusters=4, grid=4)
    with torch.autocast("cpu", torch.bfloat16):
        found = head([backbone(torch.randn(2, 1, 32, 32))])
    assert found.vectors.dtype == torch.float32
    patches = head.layout.unpack(found.vectors).patches
    torch.testing.assert_close(patches.norm(dim=2), torch.ones(2, 16))


def test_one_level_is_passed_on() -> None:
    decoder, level = Decoder((8,), NORM), torch.randn(2, 8, 5, 6)
    assert torch.equal(decoder([level]), level) and decoder.out_channels == 8
    assert DenseEmbedding((8,), NORM, width=6, num_clusters=4, grid=4).pixels([level]).vectors.shape == (2, 6, 5, 6)


def test_clusters_that_are_spread_out_are_neither_empty_nor_everywhere() -> None:
    level = torch.randn(2, 8, 20, 20)
    head = DenseEmbedding((8,), NORM, width=6, num_clusters=4, spread=3.0)
    assert head.to_clusters is not None
    with torch.no_grad():
        head.to_clusters[1].weight *= 0.1  # as good as empty, or everywhere, without it
        head.to_clusters[1].bias -= 50
    found = head.to_clusters(level)
    torch.testing.assert_close(found.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.std(dim=(0, 2, 3)), torch.full((4,), 3.0), atol=0.1, rtol=0)
    plain = DenseEmbedding((8,), NORM, width=6, num_clusters=4)
    assert plain.to_clusters is not None and len(plain.to_clusters) == len(head.to_clusters) - 1
    with pytest.raises(ValueError, match="spread"):
        DenseEmbedding((8,), NORM, spread=-1.0)
