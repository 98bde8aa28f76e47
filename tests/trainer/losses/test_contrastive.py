"""Contrastive losses: golden numbers, slow loops, and zeros with a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.losses.golden import LABELS, OTHER, Z
from trainer.losses.contrastive import Form, contrastive
from trainer.subspaces.partition import SubspacePartition

FORMS: list[Form] = ["hinge_neg_mean_pos", "hinge_pos_mean_neg", "squared_pos_hinge_neg"]


@pytest.mark.parametrize(
    ("form", "expected"), [("hinge_neg_mean_pos", -0.7354582619), ("hinge_pos_mean_neg", -0.3064986579)]
)
def test_golden_numbers(form: Form, expected: float) -> None:
    assert float(contrastive(Z, LABELS, form=form)) == pytest.approx(expected, abs=1e-9)


def test_golden_number_of_two_learners() -> None:
    both = [float(contrastive(vectors, LABELS, form="hinge_pos_mean_neg")) for vectors in (Z, OTHER)]
    assert sum(both) / 2 == pytest.approx(-0.1224275356, abs=1e-9)


def slow(vectors: Tensor, labels: Tensor, margin: float, form: str) -> float:
    cosines: Any = (vectors @ vectors.T).tolist()
    rows = []
    for i, row in enumerate(cosines):
        same = [s for j, s in enumerate(row) if j != i and labels[j] == labels[i]]
        other = [s for j, s in enumerate(row) if labels[j] != labels[i]]
        rows.append((same, other))
    if form == "squared_pos_hinge_neg":
        pull = [(1 - s) ** 2 for same, _ in rows for s in same]
        push = [s - margin for _, other in rows for s in other if s > margin]
        return (sum(pull) / max(1, len(pull)) + sum(push) / max(1, len(push))) / 2
    values = []
    for same, other in rows:
        if not same or not other:
            continue
        if form == "hinge_neg_mean_pos":
            values.append(sum(max(0.0, s - margin) for s in other) / len(other) - sum(same) / len(same))
        else:
            values.append(sum(max(0.0, margin - s) for s in same) / len(same) + sum(other) / len(other))
    return sum(values) / max(1, len(values))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 3], [0, 0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6], [0] * 7])
def test_it_is_the_loop_over_anchors_and_has_a_gradient(form: Form, labels: list[int]) -> None:
    torch.manual_seed(len(set(labels)))
    raw = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    unit = SubspacePartition((3,)).block(raw, 0)
    found = contrastive(unit, torch.tensor(labels), margin=0.3, form=form)
    assert float(found.detach()) == pytest.approx(slow(unit, torch.tensor(labels), 0.3, form), abs=1e-12)
    found.backward()
    assert raw.grad is not None and bool(raw.grad.isfinite().all())


def test_the_published_form_by_distances_is_twice_the_hinge_on_negatives() -> None:
    """Positives pay D^2, negatives [M - D^2]+; per anchor, means of both."""
    margin = 0.8
    squared = (Z[:, None] - Z[None]).square().sum(dim=2)
    same = (LABELS[:, None] == LABELS[None]) & ~torch.eye(8, dtype=torch.bool)
    other = LABELS[:, None] != LABELS[None]
    by_distance = (squared * same).sum(1) / same.sum(1) + ((margin - squared).relu() * other).sum(1) / other.sum(1)
    ours = contrastive(Z, LABELS, margin=1 - margin / 2)
    assert float(by_distance.mean()) == pytest.approx(2 * float(ours) + 2, abs=1e-12)
