"""The screen changes nothing: the same neighbours as looking at every item, on data that are hard for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.metrics import shortlists
from trainer.metrics.neighbours import Space
from trainer.metrics.shortlists import Shortlists

SIZE = 400


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 96 items, so that 400 are five of them, and the screen is always taken."""
    monkeypatch.setattr(shortlists, "_BLOCK", 96)
    monkeypatch.setattr(shortlists, "_LEAST_ITEMS", 1)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def data(kind: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    spread = rng.standard_normal((SIZE, 16))
    centres = rng.standard_normal((5, 16))[rng.integers(0, 5, SIZE)]
    return {
        "spread": unit(spread),
        "clusters": unit(centres + 0.05 * spread),
        "nearly_equal": unit(np.ones(16) + 1e-4 * spread),
        "copies": unit(spread)[rng.integers(0, 90, SIZE)],
        "sorted": unit(centres + 0.2 * spread)[np.argsort(centres[:, 0])],
        "other_lengths": (unit(spread + 2) * rng.uniform(1.0, 1.4, (SIZE, 1))).astype(np.float32),
        "one_far": np.concatenate([unit(spread)[1:], np.full((1, 16), 5.0, np.float32)]),
        "wide": unit(spread).astype(np.float64),
        "tiny": unit(spread) * np.float32(1e-6),
        "huge": unit(spread) * np.float32(1e6),
    }[kind]


def by_hand(vectors: np.ndarray, k: int, groups: np.ndarray | None) -> np.ndarray:
    """Return rows (N, k) of a slow loop: distances of differences, ties to the lower row."""
    wide, out = vectors.astype(np.float64), np.full((len(vectors), k), -1)
    quantum = (wide**2).sum(axis=1).max() * 2.0**-32
    for i in range(len(wide)):
        far = np.round(((wide[i] - wide) ** 2).sum(axis=1) / quantum)
        gone = np.arange(len(wide)) == i
        if groups is not None:
            gone |= (groups == groups[i]) & (groups != "")
        order = np.lexsort((np.arange(len(wide)), far))
        out[i] = order[~gone[order]][:k]
    return out


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("k", [1, 40])
@pytest.mark.parametrize(
    "kind",
    ["spread", "clusters", "nearly_equal", "copies", "sorted", "other_lengths", "one_far", "wide", "tiny", "huge"],
)
def test_neighbours_are_those_of_a_slow_loop(kind: str, k: int) -> None:
    vectors = data(kind)
    groups = np.random.default_rng(1).choice(["", "a", "b", "c"], SIZE)
    for names in (None, groups):
        space = Space(vectors, names)
        found = np.concatenate([space.nearest(part, k)[0] for part in space.chunks(100, k)])
        np.testing.assert_array_equal(found, by_hand(vectors, k, names))


@pytest.mark.usefixtures("small")
def test_few_items_are_left_and_none_that_counts_is_missing() -> None:
    vectors = torch.from_numpy(data("spread"))
    screen = Shortlists(vectors, vectors.double().square().sum(dim=1))
    itself = np.arange(50)
    found = screen.of(vectors[:50], 9, (itself, itself))
    assert found is not None
    owners, items = found
    assert (np.diff(owners) >= 0).all()
    counts = np.bincount(owners, minlength=50)
    assert 9 <= counts.min() <= counts.max() < SIZE / 4
    products = (vectors[:50] @ vectors.T).numpy()
    products[itself, itself] = -1
    for i in range(50):
        assert set(np.argsort(-products[i])[:9]) <= set(items[owners == i])


@pytest.mark.usefixtures("small")
def test_it_says_when_it_cannot_tell() -> None:
    """The nearest of a query are at right angles, or few are left: then every item is looked at."""
    apart = torch.eye(64)
    screen = Shortlists(apart, torch.ones(64, dtype=torch.float64))
    assert screen.of(apart[:1], 8, (np.zeros(1, int), np.zeros(1, int))) is None
    space = Space(apart)
    assert space.nearest(np.arange(2), 3)[0].tolist() == [[1, 2, 3], [0, 2, 3]]
    own = Space(torch.from_numpy(data("spread")), np.where(np.arange(SIZE) < SIZE - 3, "a", "b"))
    rows, distances = own.nearest(np.arange(3), 5)
    assert (rows[:, 3:] == -1).all()
    assert np.isinf(distances[:, 3:]).all()


def test_memory_of_the_products_does_not_grow_with_the_gallery() -> None:
    for num_items in (10_000, 1_000_000, 100_000_000):
        for k in (1, 100, 10_000):
            num = Shortlists.num_queries(num_items, k)
            assert num == 1 or num * min(shortlists._block(k), num_items) <= 2**23
