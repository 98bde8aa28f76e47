"""Rows that are found are those that are listed; blocks, pieces and searches are cut small, to be seen at all."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from data_shards import long_grouping
from data_shards.grouping import grouped
from data_shards.long_grouping import by_class, long_grouped

KINDS = ["dense", "sorted", "sparse", "many", "rare", "one"]


def labels_of(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    return {
        "dense": rng.integers(-3, 9, 500),
        "sorted": np.sort(rng.integers(0, 9, 500)),
        "sparse": rng.integers(0, 9, 500) * 10**12,
        "many": rng.integers(0, 20_000, 500),
        "rare": np.where(np.arange(500) % 50, 0, rng.integers(0, 30, 500)),
        "one": np.zeros(500, int),
    }[kind]


@pytest.fixture(params=[(4, 2, 16, 2), (3, 8, 64, 64), (128, 32, 2**16, 64)], ids=["tiny", "small", "as it is"])
def _cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("_PIECE", "_LOOK", "_BLOCK", "_STRIDE"), request.param, strict=True):
        monkeypatch.setattr(long_grouping, name, value)
    monkeypatch.setattr(long_grouping, "_PER_CLASS", 2)
    monkeypatch.setattr(long_grouping, "_AT_ONCE", 70)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_subspaces", [0, 1, 5, 250])
def test_rows_are_found_as_they_are_listed(kind: str, num_subspaces: int) -> None:
    labels, assignment = labels_of(kind), None
    if num_subspaces:
        assignment = np.random.default_rng(1).integers(-1, num_subspaces - num_subspaces // 5, 500).astype(np.int16)
    listed = grouped(assignment, labels, max(num_subspaces, 1))
    found = long_grouped(assignment, labels, max(num_subspaces, 1))
    assert found.bounds.tolist() == listed.bounds.tolist()
    assert found.classes.tolist() == listed.classes.tolist()
    assert len(found.members) == len(listed.members)
    places = np.random.default_rng(2).permutation(len(listed.members))
    assert np.array_equal(found.members[places], listed.members[places])
    assert found.members[places[:6].reshape(2, 3)].shape == (2, 3)
    assert len(found.members[places[:0]]) == 0


def test_a_copy_finds_the_same_and_is_not_larger_than_what_it_is_made_of() -> None:
    labels, assignment = np.arange(10_000) % 7, np.arange(10_000, dtype=np.int8) % 3
    members = long_grouped(assignment, labels, 3).members
    sent = pickle.dumps(members)
    assert len(sent) < 10_000 * 8
    assert np.array_equal(pickle.loads(sent)[np.arange(10_000)], members[np.arange(10_000)])


def test_the_same_arrays_are_looked_at_once() -> None:
    labels, assignment = np.arange(20) % 3, np.zeros(20, np.int32)
    assert long_grouped(assignment, labels, 1) is not long_grouped(assignment, labels, 1)
    assignment.flags.writeable = False
    first = long_grouped(assignment, labels, 1)
    assert long_grouped(assignment, labels, 1) is first
    assert by_class(labels) is by_class(labels)
    assert long_grouped(assignment, labels.copy(), 1) is not first
    assert long_grouped(None, labels, 1) is long_grouped(None, labels, 1)
