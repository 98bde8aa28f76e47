"""W ranks compute what one rank would: gradients, accumulation, the fixed tree, growth of rows and moments."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.samplers import batch_slice
from tests.ranks import run_on_ranks
from trainer import distributed
from trainer.backbones.small import SmallResNet
from trainer.engines.ddp import DDPEngine
from trainer.engines.replicas import ReplicasDiffer
from trainer.heads import gate
from trainer.heads.linear import LinearEmbedding
from trainer.losses.margin import margin_loss
from trainer.miners import all_triplets
from trainer.model import EmbeddingModel


def make_model() -> EmbeddingModel:
    backbone = SmallResNet(widths=(8, 16), blocks=(1, 1), in_channels=1, seed=3)
    return EmbeddingModel(backbone, LinearEmbedding(16, 12, seed=3), gate.convolutions(backbone, hidden=(8, 4), seed=3))


def global_loss(vectors: Tensor) -> Tensor:
    labels = torch.arange(8) // 2
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return margin_loss(unit, labels, all_triplets(unit, labels))


def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(8, 1, 12, 12)).astype(np.float32))


def local_images(pieces: int) -> Tensor:
    start, stop = batch_slice(8, pieces, distributed.rank(), distributed.world_size())
    return images()[start:stop]


def _trained(steps: int, pieces: int, cached: bool, deterministic: bool) -> dict[str, np.ndarray]:
    make = functools.partial(torch.optim.Adam, lr=1e-2)
    engine = DDPEngine(make_model(), lambda m: make(m.parameters()), pieces, cached, deterministic)
    for _ in range(steps):
        engine.backward(global_loss(engine.embed(local_images(pieces), None)))
        assert engine.step().fault is None
    named = {name: value.numpy() for name, value in engine.tensors().items()}
    named["gradient"] = torch.cat([p.grad.reshape(-1) for p in engine.model.parameters()]).numpy()
    return named


def plain_gradient(recompute: bool = False) -> np.ndarray:
    model = make_model()
    model.backbone.recompute = recompute
    global_loss(model(images()).vectors).backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy()


@pytest.mark.parametrize(
    ("world_size", "pieces", "cached", "deterministic"),
    [
        (1, 1, False, False),
        (2, 2, False, False),
        (1, 4, True, False),
        (2, 4, True, False),
        (2, 4, False, True),
        (1, 4, True, True),
        (3, 4, False, True),
        (3, 8, True, True),
    ],
)
def test_gradient_is_that_of_one_plain_backward(
    world_size: int, pieces: int, cached: bool, deterministic: bool
) -> None:
    expected = plain_gradient()
    for found in run_on_ranks(_trained, world_size, 1, pieces, cached, deterministic):
        np.testing.assert_allclose(found["gradient"], expected, atol=2e-6 * np.abs(expected).max() + 1e-7)


@pytest.mark.parametrize(("pieces", "worlds"), [(4, (2, 3, 4)), (8, (3, 4))])
def test_deterministic_steps_have_the_same_bytes_for_any_number_of_ranks_cached_or_not(
    pieces: int, worlds: tuple[int, ...]
) -> None:
    (one,) = run_on_ranks(_trained, 1, 3, pieces, False, True)
    others = [found for world in worlds for found in run_on_ranks(_trained, world, 3, pieces, False, True)]
    others += run_on_ranks(_trained, 3, 3, pieces, True, True)
    assert any(name.endswith("exp_avg_sq") for name in one)
    for other in others:
        assert set(other) == set(one)
        for name in one:
            assert one[name].tobytes() == other[name].tobytes(), name


def _disturbed(where: str, rank: int, deterministic: bool, cached: bool) -> tuple[list[str | None], bool]:
    """A step, one that is disturbed on one rank, and one more: what `step` said, and whether the second left no trace.

    The reference takes the first and the third step only.
    """
    engines = [
        DDPEngine(
            make_model(),
            lambda m: torch.optim.Adam(m.parameters(), lr=1e-2),
            4 if deterministic or cached else None,
            cached,
            deterministic,
            clip_norm=0.5,
            average_decay=0.9,
        )
        for _ in range(2)
    ]
    found = []
    for engine in engines:
        for disturbed in (False, True, False) if engine is engines[0] else (False, False):
            said = _step(engine, where if disturbed and distributed.rank() == rank else "")
            found.append(said)
    first, second = (engine.tensors() for engine in engines)
    return found, all(torch.equal(value, second[name]) for name, value in first.items())


def _step(engine: DDPEngine, where: str) -> str | None:
    local = local_images(engine.num_pieces)
    if where == "vectors":
        local[1, 0, 2, 3] = torch.inf
    bias = engine.model.head.embedding.bias
    hook = bias.register_hook(lambda gradient: gradient * torch.nan) if where == "layer" else None
    loss = global_loss(engine.embed(local, None))
    engine.backward(loss * torch.nan if where == "loss" else loss)
    if hook is not None:
        hook.remove()
    if where == "sum":
        next(engine.model.backbone.parameters()).grad.view(-1)[3] = torch.nan
    return engine.step().fault


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("vectors", "the vectors of rank 1"),
        ("loss", "the loss on rank 1"),
        ("layer", "the gradients"),
        ("sum", "the gradients on rank 1"),
    ],
)
@pytest.mark.parametrize(("deterministic", "cached"), [(False, False), (False, True), (True, False)])
def test_what_is_not_finite_on_one_rank_is_applied_on_none(
    where: str, said: str, deterministic: bool, cached: bool
) -> None:
    for found, untouched in run_on_ranks(_disturbed, 2, where, 1, deterministic, cached):
        assert found == [None, said, None, None, None]
        assert untouched


def _replicas(flipped: list[int]) -> list[str]:
    engine = DDPEngine(
        make_model(), lambda m: torch.optim.Adam(m.parameters()), 4, deterministic=True, average_decay=0.9
    )
    _step(engine, "")
    engine.check_replicas(1)
    said = []
    parameter = next(engine.model.parameters())
    for tensor in (parameter, engine.optimiser.state[parameter]["exp_avg_sq"]):
        bits = tensor.data.view(-1).view(torch.int32)
        if distributed.rank() in flipped:
            bits[5] ^= 1
        try:
            engine.check_replicas(2)
        except ReplicasDiffer as error:
            said.append(str(error))
        if distributed.rank() in flipped:
            bits[5] ^= 1
    engine.check_replicas(3)
    return said


@pytest.mark.parametrize(
    ("world", "flipped", "named"), [(2, [1], "ranks 0, 1"), (3, [2], "rank 2"), (3, [0], "rank 0")]
)
def test_a_flipped_bit_of_one_rank_is_noticed_and_the_rank_named(world: int, flipped: list[int], named: str) -> None:
    for said in run_on_ranks(_replicas, world, flipped):
        assert [text.split(" held ")[0] for text in said] == [f"at step 2 {named}"] * 2


def _own_statistics() -> bool:
    backbone = SmallResNet(widths=(8, 16), blocks=(1, 1), in_channels=1, seed=3, norm="batch")
    model = EmbeddingModel(
        backbone, LinearEmbedding(16, 12, seed=3), gate.convolutions(backbone, hidden=(8, 4), seed=3)
    )
    engine = DDPEngine(model, lambda m: torch.optim.Adam(m.parameters()))
    assert _step(engine, "") is None
    engine.check_replicas(1)
    means = torch.stack([buffer.sum() for name, buffer in model.named_buffers() if name.endswith("running_mean")])
    found = distributed.gather_rows(means[None])
    return torch.equal(found[0], found[1])


def test_batch_statistics_of_each_rank_are_its_own() -> None:
    assert run_on_ranks(_own_statistics, 2) == [False, False]


def _one_rank_has_nothing_to_compare() -> None:
    DDPEngine(make_model(), lambda m: torch.optim.Adam(m.parameters())).check_replicas(0)


def test_one_rank_has_nothing_to_compare() -> None:
    run_on_ranks(_one_rank_has_nothing_to_compare, 1)


def _grown() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    engine = DDPEngine(make_model(), lambda m: torch.optim.Adam(m.parameters(), lr=1e-2))
    _step(engine, "")
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
    _step(engine, "")
    saved = {name: value.clone() for name, value in engine.tensors().items()}
    other = DDPEngine(
        make_model().to(memory_format=torch.channels_last),
        lambda m: torch.optim.Adam(m.parameters()),
        average_decay=0.9,
    )
    other.load_tensors(saved)
    for each in (engine, other):
        _step(each, "")
    return [torch.equal(value, other.tensors()[name]) for name, value in engine.tensors().items()]


def test_loaded_engine_takes_the_same_next_step() -> None:
    (same,) = run_on_ranks(_round_trip, 1)
    assert all(same)
    assert len(same) > 20


def kept_bytes(recompute: bool) -> int:
    """Return how much a forward pass keeps for backward."""
    found: list[int] = []
    model = make_model()
    model.backbone.recompute = recompute

    def keep(value: Tensor) -> Tensor:
        found.append(value.nbytes)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(images())
    return sum(found)


def test_levels_that_are_computed_again_give_the_same_gradient_from_less_memory() -> None:
    assert np.array_equal(plain_gradient(recompute=True), plain_gradient())
    assert kept_bytes(recompute=True) < 0.6 * kept_bytes(recompute=False)


def _compiled() -> np.ndarray:
    engine = DDPEngine(make_model(), lambda m: torch.optim.SGD(m.parameters(), 0.1), compiler="aot_eager")
    engine.backward(global_loss(engine.embed(images(), None)))
    return torch.cat([p.grad.reshape(-1) for p in engine.model.parameters()]).numpy()


def test_a_compiled_network_has_the_same_gradient() -> None:
    found = run_on_ranks(_compiled, 1)[0]
    assert np.allclose(found, plain_gradient(), rtol=1e-4, atol=1e-6)
