"""The objective of an ensemble: golden total, every learner on every image, and what it leaves to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launch.config import checked
from launch.objective import build_objective
from tests.trainer.losses.golden import LABELS, OTHER, Z
from trainer.objectives.ensemble import EnsembleObjective
from trainer.subspaces.partition import SubspacePartition

TWO = SubspacePartition((4, 4))


def objective(**ensemble: Any) -> EnsembleObjective:
    tree = {
        "data": {"shards": "x"},
        "model": {"num_dims": 8, "num_subspaces": 2},
        "growth": {"enabled": False},
        "objective": {
            "loss": {"name": "contrastive", "form": "hinge_pos_mean_neg"},
            "miner": {"name": "none"},
            "ensemble": ensemble,
        },
    }
    built = build_objective(checked(tree, "test"), 4)
    assert isinstance(built, EnsembleObjective)
    return built


def total(built: EnsembleObjective, vectors: torch.Tensor) -> torch.Tensor:
    (update,) = built.updates(vectors, LABELS, TWO, None, step=0)
    return update.loss


def test_golden_totals() -> None:
    both = torch.cat([Z, OTHER], dim=1)
    assert float(total(objective(divergence=0.05), both)) == pytest.approx(-0.1076701147, abs=1e-9)
    assert float(total(objective(divergence=0.0), both)) == pytest.approx(-0.1224275356, abs=1e-9)


def test_lengths_of_blocks_do_not_matter_and_every_block_has_a_gradient() -> None:
    both = torch.cat([Z, 3 * OTHER], dim=1).requires_grad_()
    loss = total(objective(divergence=0.05), both)
    assert float(loss.detach()) == pytest.approx(-0.1076701147, abs=1e-9)
    loss.backward()
    assert both.grad is not None
    assert bool((both.grad[:, :4].norm(dim=1) > 0).all()) and bool((both.grad[:, 4:].norm(dim=1) > 0).all())


def test_learners_may_learn_proxies_of_their_own() -> None:
    tree = {
        "data": {"shards": "x"},
        "model": {"num_dims": 8, "num_subspaces": 2},
        "growth": {"enabled": False},
        "objective": {"loss": {"name": "ProxyAnchorLoss"}, "miner": {"name": "none"}, "ensemble": {}},
    }
    built = build_objective(checked(tree, "test"), 4)
    (update,) = built.updates(torch.randn(8, 8, requires_grad=True), LABELS, TWO, None, step=0)
    update.loss.backward()
    assert isinstance(built, EnsembleObjective)
    learned = dict(built.learners.named_parameters())
    assert {name for name, value in learned.items() if value.grad is not None} == {"0/proxies", "1/proxies"}
