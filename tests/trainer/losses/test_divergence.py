"""Divergence of learners: golden number, slow loops over same images and over all pairs."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.losses.golden import LABELS, OTHER, Z
from trainer.losses.contrastive import contrastive
from trainer.losses.divergence import divergence


def test_golden_numbers() -> None:
    assert float(divergence([Z, OTHER], 0.2)) == pytest.approx(0.2951484177, abs=1e-9)
    own = sum(float(contrastive(vectors, LABELS, form="hinge_pos_mean_neg")) for vectors in (Z, OTHER)) / 2
    assert own + 0.05 * float(divergence([Z, OTHER], 0.2)) == pytest.approx(-0.1076701147, abs=1e-9)


def test_it_is_the_loop_over_pairs_of_learners() -> None:
    torch.manual_seed(0)
    learners = [torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1) for _ in range(4)]
    same, active = [], []
    for p in range(4):
        for q in range(p + 1, 4):
            same += [max(0.0, float(learners[p][i] @ learners[q][i]) - 0.1) for i in range(5)]
            active += [float(learners[p][i] @ learners[q][j]) - 0.1 for i in range(5) for j in range(5)]
    inside = [value for value in active if value > 0]
    assert float(divergence(learners, 0.1)) == pytest.approx(sum(same) / len(same), abs=1e-12)
    assert float(divergence(learners, 0.1, "all")) == pytest.approx(sum(inside) / len(inside), abs=1e-12)


def test_one_learner_has_nothing_to_differ_from_but_a_graph() -> None:
    vectors = torch.randn(4, 3, requires_grad=True)
    loss = divergence([vectors])
    loss.backward()
    assert float(loss.detach()) == 0
    far = divergence([torch.eye(2, requires_grad=True), -torch.eye(2)], 0.2, "all")
    far.backward()
    assert float(far.detach()) == 0
