"""The critic of shapes: published size, any mask, two players that do not touch each other, a way into checkpoints."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from trainer.model import count_parameters
from trainer.objectives.critic import Critic, ShapeGuide
from trainer.optim import OPTIMISERS


def lines(step: int, places: npt.NDArray[np.int64]) -> Tensor:
    """Return masks (n, 32, 32) with one upright line each, at a place that depends on step and number."""
    masks = torch.zeros(len(places), 32, 32)
    for row, place in enumerate(places.tolist()):
        column = (7 * place + 3 * step) % 28
        masks[row, :, column : column + 3] = 1
    return masks


def blobs(count: int) -> Tensor:
    return torch.rand(count, 32, 32, generator=torch.Generator().manual_seed(count)).clamp(0.2, 0.8)


def guide(penalty: float = 0.0) -> ShapeGuide:
    make = partial(OPTIMISERS["adam"], weight_decay=0.0)
    return ShapeGuide(Critic(32, seed=1), lines, make, lr=1e-2, penalty=penalty)


def test_published_size_and_any_side() -> None:
    assert count_parameters(Critic(448)) == 52_129
    for side in (5, 9, 32, 100):
        assert Critic(side)(torch.rand(3, 1, side, side)).shape == (3,)
    with pytest.raises(ValueError, match="5 pixels"):
        Critic(4)


def test_a_slope_of_one_is_linear_but_for_pooling() -> None:
    critic, x = Critic(9, slope=1.0), torch.rand(2, 1, 9, 9)
    assert critic.pools == [False] * 5
    zero = critic(torch.zeros_like(x))
    torch.testing.assert_close(critic(3 * x) - zero, 3 * (critic(x) - zero), atol=1e-3, rtol=1e-3)


@pytest.mark.usefixtures("alone")
def test_the_critic_learns_shapes_and_the_network_is_pulled_towards_them() -> None:
    found, maps = guide(), blobs(8).requires_grad_()
    first = found.loss(maps)
    first.backward()
    assert maps.grad is not None and float(maps.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in found.critic.parameters())
    for number in range(40):
        found.loss(blobs(8))
        found.step(1.0, number)
    assert float(found.loss(blobs(8))) > float(first.detach()) + 0.5  # it sees through them by now
    assert float(found.loss(lines(99, np.arange(8)))) < 0.5


@pytest.mark.usefixtures("alone")
def test_weights_and_moments_go_into_a_checkpoint_and_back() -> None:
    one, other = guide(), guide()
    for number in range(3):
        one.loss(blobs(4))
        one.step(1.0, number)
    other.load_tensors({name: value.clone() for name, value in one.tensors().items()})
    for number in range(3, 6):
        for each in (one, other):
            each.loss(blobs(4))
            each.step(0.5, number)
    for left, right in zip(one.critic.parameters(), other.critic.parameters(), strict=True):
        assert torch.equal(left, right)


def steepness(critic: Critic) -> float:
    """Return the mean squared norm of the gradient of the logit at prior masks, one mask at a time."""
    squares = []
    for mask in lines(3, np.arange(8)):
        given = mask[None, None].clone().requires_grad_()
        (slopes,) = torch.autograd.grad(critic(given)[0], given)
        squares.append(float((slopes**2).sum()))
    return float(np.mean(squares))


@pytest.mark.usefixtures("alone")
def test_a_penalty_flattens_the_critic_at_prior_masks() -> None:
    free, bound = guide(), guide(penalty=10.0)
    for number in range(40):
        for each in (free, bound):
            each.loss(blobs(8))
            each.step(1.0, number)
    assert steepness(bound.critic) < 0.2 * steepness(free.critic)


@pytest.mark.usefixtures("alone")
def test_the_penalty_adds_its_gradient_to_that_of_the_judgement() -> None:
    """One step of plain descent, against the loss written out with finite penalties of single masks."""
    make = partial(OPTIMISERS["sgd"], weight_decay=0.0, momentum=0.0, nesterov=False)
    found, slow = (ShapeGuide(Critic(32, seed=1), lines, make, lr=1e-2, penalty=2.0) for _ in range(2))
    found.loss(blobs(4))
    found.step(1.0, 5)
    real, critic = lines(5, np.arange(4))[:, None].requires_grad_(), slow.critic
    loss = (
        torch.nn.functional.softplus(-critic(real)).mean()
        + torch.nn.functional.softplus(critic(blobs(4)[:, None])).mean()
    ) / 2
    for one in range(4):
        given = real[one : one + 1]
        (slopes,) = torch.autograd.grad(critic(given).sum(), given, create_graph=True)
        loss = loss + 2.0 * (slopes**2).sum() / 4
    gradients = torch.autograd.grad(loss, list(critic.parameters()))
    for after, before, gradient in zip(found.critic.parameters(), critic.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 1e-2 * gradient, atol=1e-6, rtol=1e-4)
