"""Coarse maps of a split: what the network gives, row by row, in any block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards.augment import AugmentConfig
from data_shards.errors import UserError
from data_shards.loader import eval_images
from data_shards.reader import ShardFolder
from trainer.backbones.small import SmallResNet
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.model import EmbeddingModel
from trainer.segmentation import sources
from trainer.segmentation.grad_cam import class_maps
from trainer.segmentation.maps import full_size

CONFIG = AugmentConfig(size=32)


def network(attention: bool = True) -> EmbeddingModel:
    backbone = SmallResNet((4, 8), (1, 1))
    mask = gate.convolutions(backbone, hidden=(5, 4)) if attention else None
    return EmbeddingModel(backbone, LinearEmbedding(8, 6), mask)


def test_attention_is_the_heads_map(phantoms: ShardFolder) -> None:
    train, net = phantoms.split("train"), network().train()
    rows = np.array([3, 0, *range(4, 36)])
    found = sources.attention(net, CONFIG)(train, rows)
    net.eval()
    for place, row in enumerate(rows[:4]):
        with torch.no_grad():
            expected = net(eval_images(train, np.array([row]), CONFIG)).maps[0, 0]
        torch.testing.assert_close(found[place], expected)
    assert found.shape == (34, 16, 16)


def test_grad_cam_takes_the_predicted_class_or_the_label(phantoms: ShardFolder) -> None:
    train, net, rows = phantoms.split("train"), network(), np.arange(6)
    weight, bias = torch.randn(2, 6), torch.zeros(2)
    images, labels = eval_images(train, rows, CONFIG), torch.from_numpy(train.labels[rows].astype(np.int64))
    predicted = sources.classification(net, weight, bias, CONFIG)(train, rows)
    torch.testing.assert_close(predicted, class_maps(net, images, weight, bias))
    labelled = sources.classification(net, weight, bias, CONFIG, "label")(train, rows)
    torch.testing.assert_close(labelled, class_maps(net, images, weight, bias, labels))


def test_coarse_maps_are_made_once_and_enlarged_by_the_piece(phantoms: ShardFolder) -> None:
    calls = []

    def coarse(reader: object, rows: np.ndarray) -> torch.Tensor:
        calls.append(rows)
        return torch.arange(len(rows) * 16.0).view(-1, 4, 4) ** 2

    maps = sources.at_full_size(coarse, 32, "minmax")(phantoms.split("train"), np.arange(9))
    whole = full_size(coarse(None, np.arange(9)), 32, "minmax")
    assert torch.equal(torch.cat([maps(slice(0, 4)), maps(slice(4, 9))]), whole)
    assert torch.equal(maps(np.array([5, 2])), whole[[5, 2]])
    assert len(calls) == 2


def test_a_head_without_attention_is_one_sentence(phantoms: ShardFolder) -> None:
    with pytest.raises(UserError, match="no attention maps"):
        sources.attention(network(attention=False), CONFIG)(phantoms.split("test"), np.arange(2))
