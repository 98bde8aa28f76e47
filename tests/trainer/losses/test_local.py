"""Local discrimination's losses: golden numbers, slow loops, and values that stay finite where others break."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from tests.trainer.losses.golden import Z, vectors
from trainer.heads.dense import Pixels, binary_entropy, summed_up
from trainer.losses.local import instance_loss, log_one_minus_exp, region_loss, soft_dice_loss


def test_golden_numbers() -> None:
    assert float(instance_loss(Z)) == pytest.approx(2.7400728167, abs=1e-9)
    regions = vectors(12, 4, 2, 5).unflatten(0, (3, 4))
    assert float(region_loss(regions)) == pytest.approx(3.7414044759, abs=1e-9)
    p = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64)
    assert float(binary_entropy(p).mean()) == pytest.approx(0.7824618061, abs=1e-9)
    found = soft_dice_loss(torch.tensor([0.9, 0.6, 0.2, 0.1], dtype=torch.float64), torch.tensor([1, 1, 0, 0]))
    assert float(found) == pytest.approx(-0.625, abs=1e-12)


def test_published_entropies_and_floors_of_sixteen_regions() -> None:
    assert float(binary_entropy(torch.tensor([1 / 16], dtype=torch.float64))) == pytest.approx(0.3373, abs=1e-4)
    orthogonal = torch.eye(16, dtype=torch.float64).expand(3, 16, 16)
    assert float(region_loss(orthogonal)) == pytest.approx(0.0963, abs=1e-4)
    simplex = normalize(torch.eye(16, dtype=torch.float64) - 1 / 16, dim=1).expand(3, 16, 16)
    assert float(region_loss(simplex)) == pytest.approx(0.0699, abs=1e-4)
    alike = torch.ones(3, 16, 4, dtype=torch.float64) / 2
    assert float(region_loss(alike)) == pytest.approx(math.log(16), abs=1e-12)


def test_the_instance_loss_is_the_loop_over_items() -> None:
    torch.manual_seed(0)
    x = normalize(torch.randn(10, 3, dtype=torch.float64), dim=1)
    total = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        powers = {j: math.exp(float(x[i] @ x[j]) / 0.1) for j in range(10) if j != i}
        whole = sum(powers.values())
        total += math.log(powers[partner] / whole)
        total += sum(math.log(1 - powers[j] / whole) for j in powers if j != partner)
    assert float(instance_loss(x)) == pytest.approx(-total / 10, abs=1e-9)


def test_the_second_factor_is_held_still() -> None:
    """The gradient at an item comes from its own row only."""
    x = Z.clone().requires_grad_()
    instance_loss(x).backward()
    own = Z.clone().requires_grad_()
    fixed, rows = Z.clone(), []
    for i in range(8):
        powers = (own[i] @ fixed.T / 0.1).exp()
        p = powers / (powers.sum() - powers[i])
        partner = (i + 4) % 8
        others = [j for j in range(8) if j not in (i, partner)]
        rows.append(p[partner].log() + (1 - p[others]).log().sum())
    (-torch.stack(rows).mean()).backward()
    torch.testing.assert_close(x.grad, own.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_items_that_point_apart_or_alike_stay_finite(dtype: torch.dtype) -> None:
    for pair in ([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]):
        x = torch.tensor(pair, dtype=dtype, requires_grad=True)
        loss = instance_loss(x)
        loss.backward()
        assert bool(loss.isfinite()) and x.grad is not None and bool(x.grad.isfinite().all())
    x = normalize(torch.ones(6, 4, dtype=dtype), dim=1).clone()
    x[1] = -x[1]
    x.requires_grad_()
    instance_loss(x, temperature=0.01).backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_log_one_minus_exp() -> None:
    x = torch.tensor([-1e-6, -0.1, -1.0, -50.0], dtype=torch.float64)
    expected = [math.log(-math.expm1(value)) for value in x.tolist()]
    assert log_one_minus_exp(x).tolist() == pytest.approx(expected, rel=1e-12)
    assert float(log_one_minus_exp(torch.tensor(-torch.inf))) == 0


def test_regions_by_one_contraction_are_the_naive_product() -> None:
    torch.manual_seed(1)
    pixels = Pixels(normalize(torch.randn(2, 5, 6, 8), dim=1), torch.rand(2, 3, 6, 8).softmax(dim=1))
    assert pixels.clusters is not None
    naive = (pixels.clusters[:, :, None] * pixels.vectors[:, None]).mean(dim=(3, 4))
    torch.testing.assert_close(summed_up(pixels, 2).regions, normalize(naive, dim=2))


def test_a_batch_without_foreground_is_scored_by_its_background() -> None:
    p, empty = torch.tensor([0.1, 0.2]), torch.zeros(2)
    assert float(soft_dice_loss(p, empty)) == pytest.approx(-2 * 1.7 / (2 + 1.7 + 1))
