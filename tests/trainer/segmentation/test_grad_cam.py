"""Grad-CAM: the map lights up where the reason is, and equals the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.backbones.small import SmallResNet
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.model import EmbeddingModel
from trainer.segmentation.grad_cam import class_maps, similarities, similarity_maps
from trainer.subspaces.partition import SubspacePartition


@pytest.fixture(scope="module")
def network() -> EmbeddingModel:
    """Return a small network with an attention gate, random weights."""
    backbone = SmallResNet((4, 8), (1, 1), seed=3)
    return EmbeddingModel(backbone, LinearEmbedding(8, 6, seed=3), gate.convolutions(backbone, hidden=(5, 4), seed=3))


def lit(map_: Tensor) -> list[tuple[int, int]]:
    """Return (row, column) of the pixels that are not dark."""
    return [tuple(place) for place in (map_ > 1e-6).nonzero().tolist()]


def test_a_class_lights_up_where_its_colour_is(colours: EmbeddingModel, squares: dict[str, Tensor]) -> None:
    images = torch.stack(list(squares.values()))
    weight, bias = torch.eye(3, 4) * 5, torch.zeros(3)  # class 0 red, 1 green, 2 blue
    red, green, blue = (class_maps(colours, images, weight, bias, torch.full((3,), c)) for c in range(3))
    assert [lit(m) for m in red] == [[(0, 1)], [(2, 2)], []]
    assert [lit(m) for m in green] == [[(3, 2)], [], [(0, 0)]]
    assert [lit(m) for m in blue] == [[], [(1, 0)], [(3, 3)]]


def test_the_predicted_class_is_that_of_the_highest_logit(colours: EmbeddingModel, squares: dict[str, Tensor]) -> None:
    images = torch.stack(list(squares.values()))
    weight, bias = torch.eye(3, 4), torch.tensor([0.0, 0.0, 0.001])
    found = class_maps(colours, images, weight, bias)
    assert torch.equal(found[1:], class_maps(colours, images, weight, bias, torch.tensor([0, 2, 2]))[1:])
    assert lit(found[1]) == [(1, 0)]


def test_a_likeness_lights_up_at_what_is_shared(colours: EmbeddingModel, squares: dict[str, Tensor]) -> None:
    """Red is in both, at (0, 1) of one and at (2, 2) of the other; green and blue are in one each."""
    partition = SubspacePartition((3, 1))
    one, other = squares["red and green"][None], squares["red and blue"][None]
    maps, cosines = similarity_maps(colours, partition, one, other)
    assert maps.shape == (1, 3, 4, 4)
    # (1, 1, 0 | 2) and (1, 0, 1 | 1): half alike in the first subspace, one dimension in the second is always alike
    torch.testing.assert_close(cosines, torch.tensor([[0.75, 0.5, 1.0]]))
    assert lit(maps[0, 1]) == [(0, 1)]
    back, _ = similarity_maps(colours, partition, other, one)
    assert lit(back[0, 1]) == [(2, 2)]
    assert not maps[0, 2].any()  # a cosine of one dimension has no slope


def test_with_norms_held_the_map_adds_up_to_the_cosine(colours: EmbeddingModel, squares: dict[str, Tensor]) -> None:
    partition = SubspacePartition((3, 1))
    images = torch.stack(list(squares.values()))
    others = images.roll(1, 0)
    maps, cosines = similarity_maps(colours, partition, images, others, hold_norms=True)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), cosines)
    same, ones = similarity_maps(colours, partition, images, images, hold_norms=True)
    torch.testing.assert_close(ones, torch.ones(3, 3))
    assert [lit(m) for m in same[:, 1]] == [[(0, 1), (3, 2)], [(1, 0), (2, 2)], [(0, 0), (3, 3)]]
    without, _ = similarity_maps(colours, partition, images, images)
    assert without.max() < 1e-6


def test_cosines_are_those_of_the_partition() -> None:
    partition = SubspacePartition((3, 1, 4))
    vectors, others = torch.randn(2, 5, 8)
    found = similarities(partition, vectors, others)
    whole = (partition.normalize(vectors) * partition.normalize(others)).sum(1)
    torch.testing.assert_close(found[:, 0], whole)
    for k in range(3):
        block = torch.cosine_similarity(vectors[:, partition.slices[k]], others[:, partition.slices[k]])
        torch.testing.assert_close(found[:, 1 + k], block)
    torch.testing.assert_close(similarities(partition, vectors, others, hold_norms=True), found)


@pytest.mark.parametrize("subspace", [None, 0, 1])
def test_a_map_is_the_formula(network: EmbeddingModel, subspace: int | None) -> None:
    """One image at a time, the gradient by hand through gate, pooling and cosine."""
    partition = SubspacePartition((4, 2))
    images, others = torch.randn(2, 3, 3, 16, 16)
    network.train()
    found, _ = similarity_maps(network, partition, images, others)
    assert network.training
    network.eval()
    for i in range(3):
        level = network.backbone(images[i : i + 1])[-1].detach().requires_grad_()
        own, other = network.embed([level]).vectors, network(others[i : i + 1]).vectors.detach()
        if subspace is None:
            score = (partition.normalize(own) * partition.normalize(other)).sum()
        else:
            score = (partition.block(own, subspace) * partition.block(other, subspace)).sum()
        (gradient,) = torch.autograd.grad(score, level)
        expected = torch.zeros(level.shape[2:])
        for c in range(level.shape[1]):
            expected += gradient[0, c].mean() * level[0, c].detach()
        torch.testing.assert_close(found[i, 0 if subspace is None else 1 + subspace], expected.clamp(min=0))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_classifier_on_a_network_is_the_formula(network: EmbeddingModel) -> None:
    images, weight, bias = torch.randn(4, 3, 16, 16), torch.randn(5, 6), torch.randn(5)
    targets = torch.tensor([0, 3, 3, 4])
    found = class_maps(network, images, weight, bias, targets)
    network.eval()
    for i, target in enumerate(targets.tolist()):
        level = network.backbone(images[i : i + 1])[-1].detach().requires_grad_()
        logit = network.embed([level]).vectors[0] @ weight[target] + bias[target]
        (gradient,) = torch.autograd.grad(logit, level)
        expected = (gradient.mean(dim=(2, 3), keepdim=True) * level.detach()).sum(1).clamp(min=0)[0]
        torch.testing.assert_close(found[i], expected)
    with torch.no_grad():
        assert torch.equal(class_maps(network, images, weight, bias, targets), found)
