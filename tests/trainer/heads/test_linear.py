"""The linear embedding: the formula, branches, the dropout mask, half precision, initial weights per block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.heads.linear import LinearEmbedding


def test_vectors_are_the_mean_over_pixels_through_a_linear_layer() -> None:
    net, level = LinearEmbedding(12, 6), torch.randn(3, 12, 4, 5)
    embedded = net([[level]])
    pooled = level.numpy().sum(axis=(2, 3)) / 20
    expected = pooled @ net.embedding.weight.detach().numpy().T + net.embedding.bias.detach().numpy()
    np.testing.assert_allclose(embedded.vectors.detach(), expected, atol=1e-5)
    torch.testing.assert_close(embedded.features, F.normalize(level.mean((2, 3)), dim=1))
    assert embedded.maps is None


def test_branches_share_one_layer_and_each_fills_its_share() -> None:
    net, levels = LinearEmbedding(12, 6, num_branches=3), torch.randn(3, 2, 12, 4, 5).unbind()
    embedded = net([[x] for x in levels])
    assert net.embedding.weight.shape == (2, 12)
    assert net.num_features == 36
    assert embedded.features.shape == (2, 36)
    for m, level in enumerate(levels):
        torch.testing.assert_close(embedded.vectors[:, 2 * m : 2 * m + 2], net.embedding(level.mean((2, 3))))
    with pytest.raises(ValueError, match="not divisible by the 4 branches"):
        LinearEmbedding(12, 6, num_branches=4)


def test_the_mask_multiplies_the_pooled_vectors_of_every_branch() -> None:
    net, levels = LinearEmbedding(12, 6, num_branches=2), torch.randn(2, 2, 12, 3, 3).unbind()
    keep = torch.ones(2, 24)
    torch.testing.assert_close(net([[x] for x in levels], keep).vectors, net([[x] for x in levels]).vectors)
    keep[1, 12:] = 0
    torch.testing.assert_close(
        net([[x] for x in levels], keep).vectors[:, :3], net([[x] for x in levels]).vectors[:, :3]
    )
    torch.testing.assert_close(net([[x] for x in levels], keep).vectors[1, 3:], net.embedding.bias)


def test_vectors_are_float32_under_autocast() -> None:
    net, level = LinearEmbedding(12, 6), torch.randn(2, 12, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = net([[level]])
    assert embedded.vectors.dtype == torch.float32
    assert embedded.features.dtype == torch.float32


def test_each_block_is_drawn_with_its_own_fan_out() -> None:
    net = LinearEmbedding(1000, 128, widths=(100, 28))
    deviations = [block.std().item() for block in net.embedding.weight.split((100, 28))]
    assert deviations == pytest.approx([np.sqrt(2 / 1100), np.sqrt(2 / 1028)], rel=0.02)
    again = LinearEmbedding(1000, 128, widths=(100, 28))
    assert torch.equal(net.embedding.weight, again.embedding.weight)
    with pytest.raises(ValueError, match="do not sum"):
        LinearEmbedding(10, 128, widths=(100, 27))
