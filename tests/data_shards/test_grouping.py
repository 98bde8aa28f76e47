"""Rows by subspace and class, against a search for each pair."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards import grouping
from data_shards.grouping import grouped, label_counts


@pytest.mark.parametrize("kind", ["dense", "sparse", "many", "one"])
@pytest.mark.parametrize("assigned", [True, False])
def test_rows_of_every_pair_are_there_in_order(kind: str, assigned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_CHUNK", 70)
    rng = np.random.default_rng(0)
    labels = {
        "dense": rng.integers(-3, 9, 500),
        "sparse": rng.integers(0, 9, 500) * 10**12,
        "many": rng.integers(0, 20_000, 500),
        "one": np.zeros(500, int),
    }[kind]
    assignment = rng.integers(-1, 250, 500).astype(np.int32) if assigned else None
    num_subspaces = 250 if assigned else 1
    found = grouped(assignment, labels, num_subspaces)
    assert found.classes.tolist() == sorted(set(labels.tolist()))
    for k in range(num_subspaces):
        in_k = np.ones(500, bool) if assignment is None else assignment == k
        for i, label in enumerate(found.classes):
            rows = found.members[found.bounds[k, i] : found.bounds[k, i + 1]]
            assert rows.tolist() == np.flatnonzero(in_k & (labels == label)).tolist()
    assert len(found.members) == (500 if assignment is None else (assignment >= 0).sum())


def test_labels_are_counted() -> None:
    for labels in (np.array([5, 5, -2, 9]), np.array([10**14, 0, 10**14]), np.zeros(0, int)):
        found, counts = label_counts(labels)
        expected = np.unique(labels, return_counts=True)
        assert found.tolist() == expected[0].tolist()
        assert counts.tolist() == expected[1].tolist()
