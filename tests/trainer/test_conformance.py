"""Facts of the published system that a re-implementation must reproduce, or must not repeat.

The numbers in the names are those of the list of conformance checks (the others are checked with the parts that own
them: matching, splits, steps per epoch, resume, ranks).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from data_shards import keyed
from trainer.backbones.resnet import ResNet
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.losses.margin import margin_loss
from trainer.miners import all_triplets, distance_weighted, nearest_beyond_cutoff
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition
from trainer.subspaces.surgery import permute_and_reset_moments, permute_rows, reset_rows_xavier


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_check_1_parameter_counts() -> None:
    backbone, head = ResNet(50, stages=3), LinearEmbedding(1024, 128)
    mask = gate.convolutions(backbone)
    assert count(backbone) == 8_543_296
    assert [count(layer) for layer in (*mask.base, *mask.branches)] == [1_179_776, 0, 36_896, 0, 289]
    assert count(mask) == 1_216_961
    assert count(head.embedding) == 131_200
    assert count(EmbeddingModel(backbone, head, mask)) == 9_891_457


def test_check_1_geometry_at_224_pixels() -> None:
    backbone = ResNet(50, stages=3)
    network = EmbeddingModel(backbone, LinearEmbedding(1024, 128), gate.convolutions(backbone)).eval()
    with torch.no_grad():
        embedded = network(torch.zeros(1, 3, 224, 224))
    assert embedded.maps is not None
    assert embedded.maps.shape == (1, 1, 14, 14)
    assert embedded.features.shape == (1, 1024)
    assert embedded.vectors.shape == (1, 128)


@pytest.mark.parametrize("miner", [nearest_beyond_cutoff, distance_weighted])
def test_check_2_four_classes_of_eight_give_224_triplets(miner: object) -> None:
    labels = torch.arange(4).repeat_interleave(8)
    vectors = SubspacePartition((16,)).block(torch.randn(32, 16), 0)
    anchor, _, _ = miner(vectors, labels, torch.Generator().manual_seed(0))  # type: ignore[operator]
    assert len(anchor) == 224
    assert anchor.bincount(minlength=32).tolist() == [7] * 32


def test_check_4_growth_keeps_ten_distinct_rows_and_moves_adam_moments() -> None:
    """R = 30, n = 10: the released code loses at least one selected row in 84 of 100 such splits."""
    for trial in range(20):
        rng = keyed.generator(trial, "trial")
        layer = nn.Linear(64, 30)
        optimiser = torch.optim.Adam(layer.parameters(), lr=1e-3)
        for _ in range(3):
            layer(torch.randn(8, 64)).square().sum().backward()
            optimiser.step()
        selected = rng.permutation(30)[:10].tolist()
        permutation = selected + [i for i in range(30) if i not in selected]
        fresh = list(range(10, 30))
        weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        moments = {p: {k: v.clone() for k, v in optimiser.state[p].items()} for p in layer.parameters()}

        for parameter in layer.parameters():
            parameter.data.copy_(permute_rows(parameter, permutation))
            permute_and_reset_moments(optimiser.state[parameter], permutation, fresh)
        reset_rows_xavier(layer.weight, layer.bias, fresh, keyed.generator(trial, "growth"))

        assert torch.equal(layer.weight[:10], weight[selected])
        assert torch.equal(layer.bias[:10], bias[selected])
        assert len(np.unique(layer.weight[:10].detach().numpy(), axis=0)) == 10
        for parameter, before in moments.items():
            now = optimiser.state[parameter]
            assert now["step"] == before["step"] == 3
            for name in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(now[name][:10], before[name][selected])
                assert (now[name][10:] == 0).all()
        assert not any((layer.weight[10:, None] == weight[None]).all(dim=2).flatten())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_check_5_products_sum_to_zero_per_sample_and_block(dtype: torch.dtype, tolerance: float) -> None:
    """The loss does not depend on the length of a block, so activation x gradient cancels within it."""
    partition = SubspacePartition((5, 40, 83))
    labels = torch.arange(4).repeat_interleave(8)
    generator = torch.Generator().manual_seed(0)
    for loss_on in (0, 1, 2, None):
        vectors = torch.randn(32, 128, dtype=dtype, generator=generator).requires_grad_()
        unit = partition.normalize(vectors) if loss_on is None else partition.block(vectors, loss_on)
        margin_loss(unit, labels, nearest_beyond_cutoff(unit, labels)).backward()
        assert vectors.grad is not None
        products = partition.split(vectors.detach() * vectors.grad)
        assert max(p.abs().max().item() for p in products) > 1e3 * tolerance
        assert max(p.sum(dim=1).abs().max().item() for p in products) <= tolerance


@pytest.mark.parametrize("miner", [nearest_beyond_cutoff, distance_weighted, all_triplets])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 4])
def test_check_6_few_classes_give_no_false_negatives(miner: object, num_classes: int) -> None:
    """A cluster of one class: no triplet and a zero loss that still runs backward."""
    labels = torch.arange(32) % num_classes
    vectors = torch.randn(32, 16, requires_grad=True)
    unit = SubspacePartition((16,)).block(vectors, 0)
    triplets = miner(unit, labels, torch.Generator().manual_seed(0))  # type: ignore[operator]
    anchor, positive, negative = triplets
    assert (labels[anchor] != labels[negative]).all()
    assert (labels[anchor] == labels[positive]).all()
    assert (len(anchor) == 0) == (num_classes == 1)
    loss = margin_loss(unit, labels, triplets)
    loss.backward()
    assert loss.isfinite()
    assert vectors.grad is not None
    assert (loss.item() == 0) == (num_classes == 1)
