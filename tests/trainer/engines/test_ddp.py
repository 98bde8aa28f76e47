"""W ranks compute what one rank would: gradients, accumulation, the fixed tree, growth of rows and moments."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ranks import run_on_ranks
from trainer import distributed
from trainer.backbones.small import SmallResNet
from trainer.engines.ddp import DDPEngine, pairwise_sum
from trainer.heads.attention import AttentionEmbedding
from trainer.losses.margin import margin_loss
from trainer.miners import all_triplets
from trainer.model import EmbeddingModel


def make_model() -> EmbeddingModel:
    backbone = SmallResNet(widths=(8, 16), blocks=(1, 1), in_channels=1, seed=3)
    return EmbeddingModel(backbone, AttentionEmbedding(16, 12, hidden=(8, 4), seed=3))


def global_loss(vectors: Tensor) -> Tensor:
    labels = torch.arange(8) // 2
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return margin_loss(unit, labels, all_triplets(unit, labels))


def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(8, 1, 12, 12)).astype(np.float32))


def _trained(steps: int, pieces_of_all: int, cached: bool, deterministic: bool) -> dict[str, np.ndarray]:
    world = distributed.world_size()
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    pieces = max(1, pieces_of_all // world)
    engine = DDPEngine(make_model(), lambda m: make(m.parameters()), pieces, cached, deterministic)
    share = 8 // world
    local = images()[distributed.rank() * share : (distributed.rank() + 1) * share]
    for _ in range(steps):
        assert engine.backward(global_loss(engine.embed(local, None)))
        engine.step()
    named = {name: value.numpy() for name, value in engine.tensors().items()}
    named["gradient"] = torch.cat([p.grad.reshape(-1) for p in engine.model.parameters()]).numpy()
    return named


def plain_gradient() -> np.ndarray:
    model = make_model()
    global_loss(model(images()).vectors).backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy()


@pytest.mark.parametrize(
    ("world_size", "pieces", "cached", "deterministic"),
    [
        (1, 1, False, False),
        (2, 1, False, False),
        (1, 4, True, False),
        (2, 4, True, False),
        (2, 4, False, True),
        (1, 4, True, True),
    ],
)
def test_gradient_is_that_of_one_plain_backward(
    world_size: int, pieces: int, cached: bool, deterministic: bool
) -> None:
    expected = plain_gradient()
    for found in run_on_ranks(_trained, world_size, 1, pieces, cached, deterministic):
        np.testing.assert_allclose(found["gradient"], expected, atol=2e-6 * np.abs(expected).max() + 1e-7)


def test_deterministic_steps_have_the_same_bytes_for_1_2_and_4_ranks_cached_or_not() -> None:
    (one,) = run_on_ranks(_trained, 1, 3, 4, False, True)
    others = [*run_on_ranks(_trained, 2, 3, 4, False, True), *run_on_ranks(_trained, 4, 3, 4, False, True)]
    others += run_on_ranks(_trained, 2, 3, 4, True, True)
    assert any(name.endswith("exp_avg_sq") for name in one)
    for other in others:
        assert set(other) == set(one)
        for name in one:
            assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7, 8])
def test_pairwise_sum_is_a_sum_by_a_fixed_tree(num_rows: int) -> None:
    rows = torch.randn(num_rows, 5, dtype=torch.float64)
    torch.testing.assert_close(pairwise_sum(rows), rows.sum(0))

    def tree(items: list[Tensor]) -> Tensor:
        while len(items) > 1:
            pairs = [items[i] + items[i + 1] for i in range(0, len(items) - 1, 2)]
            items = pairs + ([items[-1]] if len(items) % 2 else [])
        return items[0]

    assert torch.equal(pairwise_sum(rows), tree(list(rows)))


def _non_finite() -> list[bool]:
    engine = DDPEngine(make_model(), lambda m: torch.optim.SGD(m.parameters(), lr=1.0))
    before = {name: value.clone() for name, value in engine.tensors().items()}
    answers = []
    for factor in (float("nan"), float("inf"), 1.0):
        vectors = engine.embed(images(), None)
        answers.append(engine.backward((vectors * factor).sum()))
    same = all(torch.equal(value, before[name]) for name, value in engine.tensors().items())
    return [*answers, same]


def test_non_finite_loss_is_reported_and_leaves_the_weights() -> None:
    assert run_on_ranks(_non_finite, 1) == [[False, False, True, True]]


def _grown() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    engine = DDPEngine(make_model(), lambda m: torch.optim.Adam(m.parameters(), lr=1e-2))
    engine.backward(global_loss(engine.embed(images(), None)))
    engine.step()
    before = {name: value.clone().numpy() for name, value in engine.tensors().items()}
    permutation = [3, 1, 0, 2, *range(4, 12)]
    engine.permute_and_reset(permutation, [10, 11], seed=5)
    return before, {name: value.clone().numpy() for name, value in engine.tensors().items()}


def test_growth_moves_weights_and_moments_together_and_touches_nothing_else() -> None:
    ((before, after),) = run_on_ranks(_grown, 1)
    permutation = [3, 1, 0, 2, *range(4, 12)]
    for name, old in before.items():
        if "head.embedding" in name and old.ndim:
            np.testing.assert_array_equal(after[name][:10], old[permutation][:10])
            assert not np.array_equal(after[name][10:], old[permutation][10:])
            if name.startswith("optim/"):
                assert not after[name][10:].any()
        else:
            np.testing.assert_array_equal(after[name], old)


def _round_trip() -> list[bool]:
    engine = DDPEngine(
        make_model().to(memory_format=torch.channels_last),
        lambda m: torch.optim.Adam(m.parameters()),
        average_decay=0.9,
    )
    engine.backward(global_loss(engine.embed(images(), None)))
    engine.step()
    saved = {name: value.clone() for name, value in engine.tensors().items()}
    other = DDPEngine(
        make_model().to(memory_format=torch.channels_last),
        lambda m: torch.optim.Adam(m.parameters()),
        average_decay=0.9,
    )
    other.load_tensors(saved)
    for each in (engine, other):
        each.backward(global_loss(each.embed(images(), None)))
        each.step()
    return [torch.equal(value, other.tensors()[name]) for name, value in engine.tensors().items()]


def test_loaded_engine_takes_the_same_next_step() -> None:
    (same,) = run_on_ranks(_round_trip, 1)
    assert all(same)
    assert len(same) > 20
