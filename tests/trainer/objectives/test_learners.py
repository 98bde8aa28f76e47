"""What losses learn: one per subspace, moved with the dimensions at a split, the same on all ranks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from cluster.growth import Growth, split_tail
from data_shards import keyed
from tests.ranks import run_on_ranks
from trainer import distributed
from trainer.losses import library
from trainer.losses.classification import Classification
from trainer.losses.margin import margin_loss
from trainer.objectives.learners import Learners, Loss
from trainer.objectives.subspace import SubspaceObjective
from trainer.optim import OPTIMISERS
from trainer.subspaces.partition import SubspacePartition

NUM_CLASSES = 3
TWO = SubspacePartition((4, 4))

pytestmark = pytest.mark.usefixtures("alone")


def made(kind: str, num_dims: int, name: str, seed: int | None) -> Loss:
    key = keyed.key(seed or 0, "loss", name) >> 1
    if kind == "cross_entropy":
        return Classification(num_dims, NUM_CLASSES, seed=key)
    with library.keyed_streams(key):
        found: Loss = library.make("losses", kind, {}, "loss", num_dims=num_dims, num_classes=NUM_CLASSES)
        return found


def learners(kind: str, widths: tuple[int, ...]) -> Learners:
    optimiser = partial(OPTIMISERS["adam"], weight_decay=0.0)
    return Learners(partial(made, kind), optimiser, 0.1, SubspacePartition(widths))


def train(kind: str, widths: tuple[int, ...], steps: int = 3) -> tuple[Learners, dict[str, torch.Tensor]]:
    found = learners(kind, widths)
    partition, labels = SubspacePartition(widths), torch.arange(NUM_CLASSES).repeat(4)
    objective = SubspaceObjective(found, lambda *_: None, seed=0)
    for step in range(steps):
        vectors = torch.randn(12, sum(widths), generator=torch.Generator().manual_seed(step)).requires_grad_()
        for subspace in (*range(len(widths)), None):
            for update in objective.updates(vectors, labels, partition, subspace, step):
                update.loss.backward()
            objective.step(1.0)
    return found, {name: value.clone() for name, value in found.tensors().items()}


def split(widths: tuple[int, ...]) -> Growth:
    tail = widths[-1]
    scores = np.random.default_rng(1).random(sum(widths))
    return split_tail(4, widths, np.argsort(-scores[-tail:])[: tail // 2], scores, seed=7)


KINDS = {
    "ProxyAnchorLoss": ("proxies", 1),
    "ArcFaceLoss": ("W", 0),
    "SoftTripleLoss": ("fc", 0),
    "cross_entropy": ("weight", 1),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("widths", [(8,), (3, 6)])
def test_a_split_moves_columns_and_moments(kind: str, widths: tuple[int, ...]) -> None:
    name, axis = KINDS[kind]
    growth = split(widths)
    found, before = train(kind, widths)
    found.grow(growth)
    after = found.tensors()
    parent, start = growth.parent, sum(widths[:-1])
    kept = [i - start for i in growth.permutation[start : start + growth.widths[parent]]]
    whole = "whole" if len(widths) > 1 else "0"
    for entry, suffix in (("loss", ""), ("loss_optim", "/exp_avg"), ("loss_optim", "/exp_avg_sq")):
        old = before[f"{entry}/{parent}/{name}{suffix}"].numpy()
        np.testing.assert_array_equal(after[f"{entry}/{parent}/{name}{suffix}"], np.take(old, kept, axis))
        moved = np.take(before[f"{entry}/{whole}/{name}{suffix}"].numpy(), growth.permutation, axis)
        stay = [i for i in range(sum(widths)) if i not in growth.reset_rows]
        now = after[f"{entry}/whole/{name}{suffix}"].numpy()
        np.testing.assert_array_equal(np.take(now, stay, axis), np.take(moved, stay, axis))
        if suffix:
            assert not np.take(now, growth.reset_rows, axis).any()
        for k in range(parent):
            key = f"{entry}/{k}/{name}{suffix}"
            assert torch.equal(after[key], before[key])
    tail = after[f"loss/{parent + 1}/{name}"]
    assert tail.shape[axis] == growth.widths[-1]
    assert f"loss_optim/{parent + 1}/{name}/exp_avg" not in after
    assert len({value.data_ptr() for value in after.values()}) == len(after)  # a checkpoint stores each once


def test_what_is_stored_goes_on_as_if_nothing_had_happened() -> None:
    _, stored = train("ProxyAnchorLoss", (4, 4))
    again = learners("ProxyAnchorLoss", (8,))
    again.load_tensors(stored, SubspacePartition((4, 4)))
    assert sorted(again.tensors()) == sorted(stored)
    for name, value in again.tensors().items():
        assert torch.equal(value, stored[name]), name
    first, _ = train("ProxyAnchorLoss", (4, 4))
    for found in (first, again):
        for parameter in found.parameters():
            parameter.grad = torch.ones_like(parameter)
        found.step(0.5)
    for name, value in again.tensors().items():
        assert torch.equal(value, first.tensors()[name]), name


def test_losses_that_learn_nothing_are_left_alone() -> None:
    found = Learners(lambda num_dims, name, seed: margin_loss, partial(OPTIMISERS["adam"], weight_decay=0.0), 0.1, TWO)
    assert found.parameters() == []
    assert found.tensors() == {}
    found.step(1.0)
    found.grow(split((4, 4)))
    assert found.of(2) is found.of(None) is margin_loss


def test_of_the_whole_is_the_first_one_while_there_is_one() -> None:
    one, two = learners("cross_entropy", (8,)), learners("cross_entropy", (4, 4))
    assert one.of(None) is one.of(0)
    assert two.of(None) not in (two.of(0), two.of(1))


def unlike_gradients() -> list[float]:
    """Every rank comes with a gradient of its own; rank 0's is applied."""
    found = learners("cross_entropy", (8,))
    for parameter in found.parameters():
        parameter.grad = torch.full_like(parameter, 1.0 - 2 * distributed.rank())
    found.step(1.0)
    return [float(parameter.detach().sum()) for parameter in found.parameters()]


def test_ranks_apply_one_gradient() -> None:
    (one,) = run_on_ranks(unlike_gradients, 1)
    assert run_on_ranks(unlike_gradients, 2) == [one, one]
