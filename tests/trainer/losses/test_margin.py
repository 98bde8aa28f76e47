"""Margin loss against a slow loop, pytorch-metric-learning and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MarginLoss

from trainer.losses.margin import margin_loss
from trainer.miners import all_triplets

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])


def unit(width: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(len(LABELS), width, generator=torch.Generator().manual_seed(3), dtype=dtype), dim=1)


def slow_loss(vectors: torch.Tensor, betas: list[float], nu: float) -> float:
    total, active = 0.0, 0
    for a, p, n in torch.stack(all_triplets(vectors, LABELS), dim=1).tolist():
        beta = betas[int(LABELS[a])]
        d_ap = math.sqrt(sum((x - y) ** 2 for x, y in zip(*vectors[[a, p]].tolist(), strict=True)) + 1e-8)
        d_an = math.sqrt(sum((x - y) ** 2 for x, y in zip(*vectors[[a, n]].tolist(), strict=True)) + 1e-8)
        pull, push = max(0.0, d_ap - beta + 0.2), max(0.0, beta - d_an + 0.2)
        total += pull + push + nu * abs(beta)
        active += (pull > 0) + (push > 0)
    return total / active


@pytest.mark.parametrize("nu", [0.0, 0.1])
@pytest.mark.parametrize("beta", [1.2, torch.tensor(0.9), torch.tensor([0.8, 1.2, 1.4])])
def test_equals_a_slow_loop(beta: float | torch.Tensor, nu: float) -> None:
    vectors = unit()
    betas = torch.as_tensor(beta, dtype=torch.float64).expand(3).tolist()
    found = margin_loss(vectors, LABELS, all_triplets(vectors, LABELS), beta=beta, nu=nu)
    assert found.item() == pytest.approx(slow_loss(vectors, betas, nu), rel=1e-7)


def test_value_and_gradient_equal_pytorch_metric_learning() -> None:
    ours, theirs = (3 * unit()).requires_grad_(), (3 * unit()).requires_grad_()
    triplets = all_triplets(ours, LABELS)
    found = margin_loss(F.normalize(ours, dim=1), LABELS, triplets)  # their distance normalises by itself
    expected = MarginLoss(margin=0.2, beta=1.2)(theirs, LABELS, triplets)
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


def test_gradients_are_right() -> None:
    vectors, beta = unit().requires_grad_(), torch.tensor([0.8, 1.2, 1.4], dtype=torch.float64, requires_grad=True)
    triplets = all_triplets(vectors, LABELS)
    assert torch.autograd.gradcheck(lambda v, b: margin_loss(v, LABELS, triplets, beta=b, nu=0.1), (vectors, beta))


def test_equal_vectors_have_a_finite_gradient() -> None:
    vectors = torch.ones(8, 5, requires_grad=True)
    margin_loss(vectors, LABELS, all_triplets(vectors, LABELS)).backward()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("triplets", ["none", "inactive"])
def test_nothing_to_do_is_a_zero_that_runs_backward(triplets: str) -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    empty = torch.zeros(0, dtype=torch.long)
    chosen = (empty, empty, empty) if triplets == "none" else all_triplets(vectors, labels)
    loss = margin_loss(vectors, labels, chosen)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None
    assert (vectors.grad == 0).all()
