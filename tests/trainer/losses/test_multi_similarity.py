"""The multi-similarity loss in its three settings, by the classes that recipes name: golden numbers, and a slow loop.

Wang et al. 2019, "Multi-Similarity Loss with General Pair Weighting", https://arxiv.org/abs/1904.06627.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from launch.config import checked
from launch.objective import build_objective
from tests.trainer.losses.golden import LABELS, Z
from trainer.subspaces.partition import SubspacePartition

# alpha, beta, epsilon, and how anchors are averaged: over the batch, or over those that kept a pair
SETTINGS: dict[str, tuple[float, float, float, dict[str, Any]]] = {
    "published": (2, 50, 0.1, {}),
    "official": (2, 40, 0.1, {}),
    "histology": (2, 5, 0.2, {"reducer": {"name": "AvgNonZeroReducer"}}),
}


def loss_of(name: str, vectors: Tensor, labels: Tensor) -> Tensor:
    """Return what a step minimises under the recipe of that name."""
    alpha, beta, epsilon, reducer = SETTINGS[name]
    loss = {"name": "MultiSimilarityLoss", "alpha": alpha, "beta": beta, "base": 0.5, **reducer}
    objective = {"loss": loss, "miner": {"name": "MultiSimilarityMiner", "epsilon": epsilon}}
    model = {"num_dims": vectors.shape[1]}
    config = checked({"data": {"shards": "x"}, "model": model, "objective": objective}, "test")
    built = build_objective(config, int(labels.max()) + 1)
    (update,) = built.updates(vectors, labels, SubspacePartition((vectors.shape[1],)), 0, step=0)
    return update.loss


def slow(vectors: Tensor, labels: Tensor, alpha: float, beta: float, epsilon: float, survivors: bool) -> float:
    cosines, total, count = (vectors @ vectors.T).tolist(), 0.0, 0
    for i, row in enumerate(cosines):
        positives = [row[j] for j in range(len(row)) if j != i and labels[j] == labels[i]]
        negatives = [row[j] for j in range(len(row)) if labels[j] != labels[i]]
        if not positives or not negatives:
            continue
        kept_p = [s for s in positives if s - epsilon < max(negatives)]
        kept_n = [s for s in negatives if s + epsilon > min(positives)]
        if not kept_p or not kept_n:
            continue
        count += 1
        total += math.log1p(sum(math.exp(-alpha * (s - 0.5)) for s in kept_p)) / alpha
        total += math.log1p(sum(math.exp(beta * (s - 0.5)) for s in kept_n)) / beta
    return total / max(1, count if survivors else len(cosines))


@pytest.mark.parametrize(
    ("name", "expected"), [("published", 0.6686925838), ("official", 0.6704247391), ("histology", 0.7680397193)]
)
def test_golden_numbers(name: str, expected: float) -> None:
    assert float(loss_of(name, Z, LABELS)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), num_classes=st.integers(1, 6))
def test_it_is_the_loop_over_anchors(name: str, seed: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (12,), generator=generator)
    drawn = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(drawn, dim=1).requires_grad_()
    alpha, beta, epsilon, reducer = SETTINGS[name]
    found = loss_of(name, vectors, labels)
    assert float(found.detach()) == pytest.approx(slow(vectors, labels, alpha, beta, epsilon, bool(reducer)), abs=1e-9)
    found.backward()  # also where nothing was kept: every rank runs backward
    assert vectors.grad is not None and bool(vectors.grad.isfinite().all())
