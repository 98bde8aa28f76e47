"""Miners against slow loops over the rules they state, and by properties."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import miners

MINERS = (miners.nearest_beyond_cutoff, miners.distance_weighted, miners.all_triplets)


def batch(labels: list[int], width: int = 8, seed: int = 0, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.ones(1, width) * (1 / spread - 1)
    vectors = F.normalize(torch.randn(len(labels), width, generator=generator, dtype=torch.float64) + centre, dim=1)
    return vectors, torch.tensor(labels)


def as_list(triplets: tuple[torch.Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(t) for t in torch.stack(triplets, dim=1).tolist()]


def slow_nearest_beyond_cutoff(vectors: np.ndarray, labels: list[int], cutoff: float) -> list[tuple[int, int, int]]:
    size = len(labels)
    positives = [[j for j in range(size) if labels[j] == labels[i] and j != i] for i in range(size)]
    q = max(1, sum(map(len, positives)) // size)
    found = []
    for i in range(size):
        distance = {j: np.linalg.norm(vectors[i] - vectors[j]) for j in range(size) if labels[j] != labels[i]}
        beyond = sorted((j for j in distance if distance[j] >= cutoff), key=lambda j: distance[j])
        inside = sorted((j for j in distance if distance[j] < cutoff), key=lambda j: -distance[j])
        found += [(i, p, n) for p, n in zip(positives[i], sorted((beyond + inside)[:q]), strict=False)]
    return found


@pytest.mark.parametrize(
    "labels", [[0, 1] * 6, [0] * 5 + [1] * 2 + [2], [0, 0, 1], [i // 8 for i in range(32)], [0, 1]]
)
@pytest.mark.parametrize("spread", [1.0, 0.25])
def test_nearest_beyond_cutoff_equals_a_slow_loop(labels: list[int], spread: float) -> None:
    vectors, tensor = batch(labels, seed=len(labels), spread=spread)
    expected = slow_nearest_beyond_cutoff(vectors.numpy(), labels, 0.5)
    assert as_list(miners.nearest_beyond_cutoff(vectors, tensor)) == expected


def test_a_collapsed_embedding_still_gets_negatives() -> None:
    """Everything inside the cutoff: the published miner would return positives and the anchor itself."""
    vectors, labels = batch([i // 8 for i in range(32)], spread=0.01)
    assert miners.pairwise_distances(vectors).max() < 0.5
    anchor, positive, negative = miners.nearest_beyond_cutoff(vectors, labels)
    assert len(anchor) == 224
    assert (labels[anchor] == labels[positive]).all()
    assert (labels[anchor] != labels[negative]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=24), st.integers(0, 2**31), st.integers(2, 40))
def test_every_triplet_is_a_triplet(labels: list[int], seed: int, width: int) -> None:
    vectors, tensor = batch(labels, width=width, seed=seed)
    for mine in MINERS:
        anchor, positive, negative = mine(vectors.float(), tensor, torch.Generator().manual_seed(seed))
        assert (anchor != positive).all()
        assert (tensor[anchor] == tensor[positive]).all()
        assert (tensor[anchor] != tensor[negative]).all()


def test_all_triplets_are_all() -> None:
    labels = [0, 0, 1, 1, 1, 2]
    vectors, tensor = batch(labels)
    size = range(len(labels))
    expected = [
        (a, p, n)
        for a in size
        for p in size
        for n in size
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]
    assert as_list(miners.all_triplets(vectors, tensor)) == expected


def slow_weights(vectors: np.ndarray, labels: list[int], cutoff: float, far: float) -> np.ndarray:
    size, width = len(labels), vectors.shape[1]
    weights = np.zeros((size, size))
    for i in range(size):
        logs = np.zeros(size)
        distance = [max(cutoff, np.linalg.norm(vectors[i] - vectors[j])) for j in range(size)]
        for j in range(size):
            if labels[i] != labels[j] and distance[j] < far:
                logs[j] = (2 - width) * np.log(distance[j]) - (width - 3) / 2 * np.log(1 - distance[j] ** 2 / 4)
        for j in range(size):
            if labels[i] != labels[j]:
                weights[i, j] = 1e-6 if distance[j] > far else np.exp(logs[j] - logs.max()) + 1e-9
    return weights


@pytest.mark.parametrize("width", [3, 16, 128])
def test_inverse_density_equals_a_slow_loop(width: int) -> None:
    labels = [i // 4 for i in range(20)]
    vectors, tensor = batch(labels, width=width)
    different = tensor[:, None] != tensor[None, :]
    found = miners.inverse_density(miners.pairwise_distances(vectors), different, width, 0.5, 1.4)
    np.testing.assert_allclose(found.numpy(), slow_weights(vectors.numpy(), labels, 0.5, 1.4), rtol=1e-9)


def test_distance_weighted_draws_in_proportion_to_its_weights() -> None:
    labels = [0, 0, 1, 2, 3, 4]
    vectors, tensor = batch(labels, width=4, seed=5)
    generator = torch.Generator().manual_seed(1)
    counts: Counter[int] = Counter()
    num_draws = 1500
    for _ in range(num_draws):
        anchor, _, negative = miners.distance_weighted(vectors, tensor, generator)
        counts.update(negative[anchor == 0].tolist())
    weights = slow_weights(vectors.numpy(), labels, 0.5, 1.4)[0]
    expected = weights / weights.sum()
    observed = np.array([counts[j] for j in range(len(labels))]) / num_draws
    np.testing.assert_allclose(observed, expected, atol=4 * 0.5 / np.sqrt(num_draws))


def test_distance_weighted_draws_negatives_without_replacement() -> None:
    vectors, labels = batch([i // 8 for i in range(32)])
    anchor, positive, negative = miners.distance_weighted(vectors, labels, torch.Generator().manual_seed(0))
    assert len(anchor) == 224
    for i in range(32):
        assert len(set(negative[anchor == i].tolist())) == 7
        assert len(set(positive[anchor == i].tolist())) == 7


def test_distance_weighted_takes_no_more_negatives_than_every_anchor_has() -> None:
    vectors, labels = batch([0] * 12 + [1, 1])
    anchor, _, negative = miners.distance_weighted(vectors, labels, torch.Generator().manual_seed(0))
    assert Counter(anchor.tolist()).most_common(1)[0][1] == 2
    with pytest.raises(ValueError, match="generator"):
        miners.distance_weighted(vectors, labels)
    assert len(negative) == 28


def test_miners_run_in_float32_under_autocast_and_take_no_gradient() -> None:
    vectors, labels = batch([0, 0, 1, 1])
    vectors = vectors.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        distances = miners.pairwise_distances(vectors.detach())
        triplets = miners.nearest_beyond_cutoff(vectors, labels)
    assert distances.dtype == torch.float32
    assert all(not t.requires_grad for t in triplets)
    np.testing.assert_allclose(distances, torch.cdist(vectors, vectors).clamp(min=0.01).detach(), atol=1e-6)


def slow_semi_hard(vectors: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, int]]:
    found = []
    for a in range(len(labels)):
        others = [n for n in range(len(labels)) if labels[n] != labels[a]]
        for p in range(len(labels)):
            if p == a or labels[p] != labels[a] or not others:
                continue
            far = {n: float((vectors[a] - vectors[n]).norm()) for n in others}
            reach = float((vectors[a] - vectors[p]).norm())
            beyond = [n for n in others if far[n] > reach]
            found.append((a, p, min(beyond, key=far.__getitem__) if beyond else max(others, key=far.__getitem__)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_semi_hard_against_a_slow_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(18, 4, generator=generator), dim=1)
    labels = torch.randint(0, 5, (18,), generator=generator)
    assert list(zip(*(x.tolist() for x in miners.semi_hard(vectors, labels)), strict=True)) == slow_semi_hard(
        vectors, labels
    )


def test_semi_hard_of_one_class_finds_nothing() -> None:
    assert [len(x) for x in miners.semi_hard(torch.eye(4), torch.zeros(4))] == [0, 0, 0]
