"""Attentive embedding: the formula, the mask, half precision, initial weights per block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainer.heads.attention import AttentionEmbedding


def head(**options: object) -> AttentionEmbedding:
    return AttentionEmbedding(12, 6, hidden=(5, 4), **options)  # type: ignore[arg-type]


def test_vectors_are_the_gated_mean_through_a_linear_layer() -> None:
    net, level = head(), torch.randn(3, 12, 4, 5)
    embedded = net([torch.randn(3, 7, 8, 8), level])
    assert embedded.maps is not None
    assert embedded.maps.shape == (3, 1, 4, 5)
    gate = embedded.maps.detach().numpy()
    assert 0 < gate.min() < gate.max() < 1
    pooled = (level.numpy() * gate).sum(axis=(2, 3)) / 20
    expected = pooled @ net.embedding.weight.detach().numpy().T + net.embedding.bias.detach().numpy()
    np.testing.assert_allclose(embedded.vectors.detach(), expected, atol=1e-5)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(embedded.features.detach(), unit, atol=1e-5)


def test_without_attention_the_mean_is_plain_and_nothing_is_idle() -> None:
    net, level = head(attention=False), torch.randn(3, 12, 4, 4)
    embedded = net([level])
    assert embedded.maps is None
    torch.testing.assert_close(embedded.features, F.normalize(level.mean((2, 3)), dim=1))
    embedded.vectors.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_mask_multiplies_the_pooled_vector() -> None:
    net, level = head(), torch.randn(2, 12, 3, 3)
    keep = torch.ones(2, 12)
    torch.testing.assert_close(net([level], keep).vectors, net([level]).vectors)
    keep[1] = 0
    torch.testing.assert_close(net([level], keep).vectors[1], net.embedding.bias)


def test_vectors_are_float32_under_autocast() -> None:
    net, level = head(), torch.randn(2, 12, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = net([level])
    assert embedded.vectors.dtype == torch.float32
    assert embedded.features.dtype == torch.float32


def test_each_block_is_drawn_with_its_own_fan_out() -> None:
    net = AttentionEmbedding(1000, 128, hidden=(5, 4), widths=(100, 28))
    deviations = [block.std().item() for block in net.embedding.weight.split((100, 28))]
    assert deviations == pytest.approx([np.sqrt(2 / 1100), np.sqrt(2 / 1028)], rel=0.02)
    again = AttentionEmbedding(1000, 128, hidden=(5, 4), widths=(100, 28))
    assert torch.equal(net.embedding.weight, again.embedding.weight)
    with pytest.raises(ValueError, match="do not sum"):
        AttentionEmbedding(10, 128, widths=(100, 27))
