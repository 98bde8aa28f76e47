"""Local discrimination's objective: what the network sees, turns undone, the terms by a slow loop, ranks that agree."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainer.heads.dense import LocalLayout, Parts, Pixels, summed_up
from trainer.losses.local import instance_loss, region_loss
from trainer.objectives.critic import Critic, ShapeGuide
from trainer.objectives.local import LocalObjective
from trainer.optim import OPTIMISERS
from trainer.subspaces.partition import SubspacePartition

LAYOUT = LocalLayout(grid=2, width=3, num_clusters=4)
WHOLE = SubspacePartition((LAYOUT.num_dims,))


def test_rows_are_packed_and_unpacked() -> None:
    for layout in (LAYOUT, replace(LAYOUT, shape_side=6)):
        shape = torch.rand(5, layout.shape_side**2)
        parts = Parts(torch.randn(5, 4, 3), torch.randn(5, 4, 3), torch.rand(5), shape)
        rows = layout.pack(parts)
        assert rows.shape == (5, layout.num_dims)
        for one, other in zip(layout.unpack(rows), parts, strict=True):
            assert torch.equal(one, other)


def test_what_the_network_sees_of_a_pair_does_not_depend_on_the_rank() -> None:
    objective, images = LocalObjective(LAYOUT, seed=1), torch.randn(8, 2, 1, 6, 6)
    whole = objective.seen(images, np.arange(8), step=3)
    parts = [objective.seen(images[rows], rows, step=3) for rows in (np.arange(2), np.arange(2, 8))]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == (20, 1, 6, 6)
    for i in range(4):
        one, other, turned_one, _, mixed = whole[5 * i : 5 * i + 5]
        assert torch.equal(one, images[2 * i, 0]) and torch.equal(other, images[2 * i + 1, 0])
        assert any(torch.equal(turned_one, torch.rot90(images[2 * i, 1], k, (1, 2))) for k in range(4))
        w = ((mixed - other) / (one - other)).mean()
        assert 0.2 <= float(w) <= 0.8
        torch.testing.assert_close(mixed, w * one + (1 - w) * other)
    assert not torch.equal(whole, objective.seen(images, np.arange(8), step=4))


def seen_rows(pairs: int) -> tuple[LocalObjective, Tensor]:
    """Return rows of images whose second views are the first ones, seen through a network that turns with its image."""
    objective = LocalObjective(LAYOUT, seed=2)
    views = torch.randn(2 * pairs, 1, 3, 8, 8).expand(-1, 2, -1, -1, -1)
    seen = objective.seen(views, np.arange(2 * pairs), step=0)
    vectors = normalize(seen, dim=1)
    clusters = torch.cat([seen, -seen[:, :1]], dim=1).softmax(dim=1)
    return objective, LAYOUT.pack(summed_up(Pixels(vectors, clusters), LAYOUT.grid))


def test_turns_are_undone_on_the_grid_and_the_terms_are_those_of_the_losses() -> None:
    objective, rows = seen_rows(3)
    (update,) = objective.updates(rows.requires_grad_(), torch.zeros(15), WHOLE, None, step=0)
    parts = LAYOUT.unpack(rows.detach())
    patches = parts.patches.unflatten(0, (3, 5))
    first = patches[:, :2].flatten(0, 2)
    assert update.terms["patches"].item() == pytest.approx(float(instance_loss(torch.cat([first, first]))), rel=1e-5)
    kept = torch.tensor([i for i in range(15) if i % 5 != 4])
    assert update.terms["regions"].item() == pytest.approx(10 * float(region_loss(parts.regions[kept])), rel=1e-5)
    assert update.terms["entropy"].item() == pytest.approx(0.1 * float(parts.entropy[kept].mean()), rel=1e-5)
    assert float(update.loss.detach()) == pytest.approx(sum(map(float, update.terms.values())), rel=1e-5)
    update.loss.backward()
    assert rows.grad is not None
    moved = rows.grad.unflatten(0, (3, 5)).abs().sum(dim=2)
    assert bool((moved > 0).all())


def test_targets_of_mixtures_lie_between_their_images_and_are_held_still() -> None:
    layout = LocalLayout(grid=2, width=3, num_clusters=0)
    objective = LocalObjective(layout, seed=2)
    rows = layout.pack(
        Parts(normalize(torch.randn(10, 4, 3), dim=2), torch.zeros(10, 0, 3), torch.zeros(10), torch.zeros(10, 0))
    )
    rows.requires_grad_()
    (update,) = objective.updates(rows, torch.zeros(10), SubspacePartition((layout.num_dims,)), None, step=5)
    assert set(update.terms) == {"patches", "mixed"}
    weight = objective._draws(np.arange(2), 5).weight
    patches = layout.unpack(rows.detach()).patches.unflatten(0, (2, 5))
    between = [w * patches[i, 0] + (1 - w) * patches[i, 1] for i, w in enumerate(weight.astype(np.float32))]
    items = torch.cat([patches[:, 4].flatten(0, 1), normalize(torch.cat(between), dim=1)])
    assert update.terms["mixed"].item() == pytest.approx(float(instance_loss(items)), rel=1e-5)


def test_views_that_agree_cost_nothing_and_what_is_beside_costs() -> None:
    """Maps of views that are the same image, and of the same maps moved by a pixel, which a critic could not tell."""
    priors = lambda step, places: torch.zeros(len(places), 8, 8)  # noqa: E731
    make = partial(OPTIMISERS["adam"], weight_decay=0.0)
    layout = LocalLayout(grid=2, width=3, num_clusters=4, shape_side=8)
    objective = LocalObjective(layout, seed=2, guide=ShapeGuide(Critic(8), priors, make, 1e-3, agreement=4.0))
    views = torch.randn(6, 1, 3, 8, 8).expand(-1, 2, -1, -1, -1)
    seen = objective.seen(views, np.arange(6), step=0)
    clusters = torch.cat([seen, -seen[:, :1]], dim=1).softmax(dim=1)

    def cost(found: Tensor) -> float:
        rows = layout.pack(summed_up(Pixels(normalize(seen, dim=1), found), 2, with_shape=True))
        (update,) = objective.updates(rows, torch.zeros(15), WHOLE, None, step=0)
        return update.terms["agreement"].item()

    assert cost(clusters) == pytest.approx(0, abs=1e-9)
    beside = clusters.roll(1, dims=2)
    first, expected = beside[:, 0].unflatten(0, (3, 5)), []
    drawn = objective._draws(np.arange(3), 0)
    for i in range(3):
        for j in range(2):
            back = first[i, 2 + j].rot90(-int(drawn.quarters[i, j]) - 2 * int(drawn.half[i, j]), (0, 1))
            expected.append(float(((first[i, j] - back) ** 2).mean()))
    assert cost(beside) == pytest.approx(4 * np.mean(expected), rel=1e-5) and max(expected) > 0
