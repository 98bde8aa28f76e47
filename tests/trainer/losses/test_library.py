"""pytorch-metric-learning by name: every class can be used, with keyed draws, and mistakes are answered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from data_shards.errors import UserError
from trainer.losses import library
from trainer.losses.margin import margin_loss

NEEDS = {"HistogramLoss": {"n_bins": 20}, "RankedListLoss": {"margin": 0.4, "Tn": 10}}


def batch(num_dims: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = torch.randn(16, num_dims, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(vectors, dim=1).requires_grad_(), torch.arange(4).repeat_interleave(4)


@pytest.mark.parametrize("name", library.names("losses"))
def test_every_loss_by_its_name(name: str) -> None:
    vectors, labels = batch()
    with library.keyed_streams(0):
        loss = library.make("losses", name, NEEDS.get(name, {}), "objective.loss", num_dims=6, num_classes=4)
        value = loss(vectors, labels, None)
    value.backward()
    assert value.shape == ()
    assert value.isfinite()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in library.names("miners") if name not in ("HDCMiner",)])
def test_every_miner_by_its_name(name: str) -> None:
    vectors, labels = batch()
    mine = library.as_miner(library.make("miners", name, {}, "objective.miner"), triplets=True)
    generator = torch.Generator().manual_seed(3)
    triplets = mine(vectors.detach(), labels, generator)
    assert len(triplets) == 3
    anchors, positives, negatives = triplets
    assert (labels[anchors] == labels[positives]).all()
    assert (labels[anchors] != labels[negatives]).all()
    assert margin_loss(vectors, labels, triplets).isfinite()
    again = mine(vectors.detach(), labels, generator)
    assert all(torch.equal(a, b) for a, b in zip(triplets, again, strict=True))


def test_the_same_key_gives_the_same_proxies_and_leaves_the_stream_alone() -> None:
    before = torch.random.get_rng_state()

    def proxies(seed: int) -> torch.Tensor:
        with library.keyed_streams(seed):
            loss = library.make("losses", "ProxyAnchorLoss", {}, "objective.loss", num_dims=6, num_classes=4)
        return loss.proxies.detach()

    assert torch.equal(proxies(1), proxies(1))
    assert not torch.equal(proxies(1), proxies(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parts_of_a_loss_by_name() -> None:
    arguments = {"margin": 0.1, "distance": {"name": "CosineSimilarity"}, "reducer": {"name": "MeanReducer"}}
    loss = library.make("losses", "TripletMarginLoss", arguments, "objective.loss")
    assert type(loss.distance).__name__ == "CosineSimilarity"
    assert type(loss.reducer).__name__ == "MeanReducer"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("ContrastivLoss", {}, "unknown 'ContrastivLoss' (did you mean 'ContrastiveLoss'?)"),
        ("CrossBatchMemory", {}, "unknown 'CrossBatchMemory'"),
        ("ContrastiveLoss", {"pos_margn": 1}, "objective.loss.pos_margn: ContrastiveLoss has no such argument"),
        (
            "TripletMarginLoss",
            {"reducer": {"name": "MeanReduced"}},
            "objective.loss.reducer.name: unknown 'MeanReduced'",
        ),
        ("TripletMarginLoss", {"distance": {"p": 2}}, "objective.loss.distance.name: unknown ''"),
        ("RankedListLoss", {}, "objective.loss: RankedListLoss cannot be made of these arguments"),
    ],
)
def test_mistakes(name: str, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        library.make("losses", name, arguments, "objective.loss", num_dims=4, num_classes=2)
    assert said in str(caught.value)
