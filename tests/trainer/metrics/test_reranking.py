"""Re-ranking against slow loops over the papers' formulas, ties included, and by what must not matter to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import UserError
from trainer.metrics import reciprocal
from trainer.metrics.neighbours import Ranking, Space
from trainer.metrics.reranking import KReciprocal, QueryExpansion, Reranking

SMALL = KReciprocal(k1=6, k2=3, distance_weight=0.3, shortlist=1000)
EXPANSION = QueryExpansion(k=4, alpha=3.0)


def unit(size: int, seed: int, width: int = 4, copies: bool = False) -> np.ndarray:
    """Return unit vectors in loose clusters; with copies a third of them are there twice."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((size, width)) + 2 * rng.standard_normal((5, width))[rng.integers(0, 5, size)]
    if copies:
        vectors[: size // 3] = vectors[rng.permutation(size)[: size // 3]]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def order(ranking: Ranking) -> list[list[int]]:
    """Return the whole order of every query."""
    found = []
    for part in ranking.chunks(7, ranking.num_items):
        rows, _ = ranking.nearest(part, ranking.num_items)
        found += [[int(row) for row in each if row >= 0] for each in rows]
    return found


def galleries(
    queries: np.ndarray, groups: np.ndarray | None, gallery: np.ndarray | None, gallery_groups: np.ndarray | None
) -> list[list[int]]:
    """Return which rows every query may find."""
    items = queries if gallery is None else gallery
    theirs = groups if gallery is None else gallery_groups
    rows = []
    for i in range(len(queries)):
        kept = [j for j in range(len(items)) if gallery is not None or j != i]
        rows.append([j for j in kept if groups is None or theirs is None or not groups[i] or groups[i] != theirs[j]])
    return rows


def squared(x: np.ndarray, y: np.ndarray) -> float:
    return round(float(((x - y) ** 2).sum()), 9)


def slow_reciprocal(query: np.ndarray, at: int, items: dict[int, np.ndarray], rule: KReciprocal) -> list[int]:
    """Return the order of `items` for a query that has the row number `at`, by the formulas of the paper."""
    points = dict(sorted({**items, at: query}.items()))
    near = {
        x: [x, *sorted((y for y in points if y != x), key=lambda y: (squared(points[x], points[y]), y))] for x in points
    }

    def reciprocal_of(x: int, k: int) -> set[int]:
        return {y for y in near[x][: k + 1] if x in near[y][: k + 1]}

    encoded: dict[int, dict[int, float]] = {}
    for x in points:
        members = set(first := reciprocal_of(x, rule.k1))
        for y in first:
            half = reciprocal_of(y, rule.k1 // 2)
            if len(half & first) >= 2 / 3 * len(half):
                members |= half
        encoded[x] = {y: np.exp(-squared(points[x], points[y])) for y in members}
    means = {
        x: {y: sum(encoded[z].get(y, 0) for z in near[x][: rule.k2]) / len(near[x][: rule.k2]) for y in points}
        for x in points
    }

    def distance(x: int) -> float:
        shared = sum(min(means[at][y], means[x][y]) for y in points)
        whole = sum(max(means[at][y], means[x][y]) for y in points)
        weight = rule.distance_weight
        return round((1 - weight) * (1 - shared / whole) + weight * squared(query, points[x]), 8)

    plain = near[at][1:]
    return sorted(plain[: rule.shortlist], key=lambda x: (distance(x), plain.index(x))) + plain[rule.shortlist :]


def slow_expansion(query: np.ndarray, items: dict[int, np.ndarray], rule: QueryExpansion) -> list[int]:
    first = sorted(items, key=lambda y: (squared(query, items[y]), y))[: rule.k]
    total = query.copy()
    for y in first:
        total += max(float(query @ items[y]), 0) ** rule.alpha * items[y]
    total /= np.linalg.norm(total)
    return sorted(items, key=lambda y: (squared(total, items[y]), y))


def slow(rule: Any, queries: np.ndarray, *sides: np.ndarray | None) -> list[list[int]]:
    groups, gallery, gallery_groups = (*sides, None, None, None)[:3]
    items = queries if gallery is None else gallery
    found = []
    for i, rows in enumerate(galleries(queries, groups, gallery, gallery_groups)):
        own = {row: items[row] for row in rows}
        at = i if gallery is None else len(items)
        slowly = slow_reciprocal(queries[i], at, own, rule) if isinstance(rule, KReciprocal) else None
        found.append(slow_expansion(queries[i], own, rule) if slowly is None else slowly)
    return found


RULES: list[Reranking] = [SMALL, KReciprocal(5, 1, 0.0, 9), KReciprocal(1, 1, 0.5, 50), KReciprocal(50, 9, 0.2, 20)]
RULES += [EXPANSION, QueryExpansion(k=3, alpha=0.0), QueryExpansion(k=500, alpha=1.0)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("copies", [False, True], ids=["plain", "ties"])
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "groups"])
def test_equal_a_slow_loop_in_both_galleries(rule: Reranking, copies: bool, grouped: bool) -> None:
    rng = np.random.default_rng(9)
    queries, gallery = unit(25, 1, copies=copies), unit(32, 2, copies=copies)
    gallery[:4] = queries[:4]
    names = (rng.choice(["", "a", "b", "c"], 25), rng.choice(["", "a", "b", "z"], 32)) if grouped else (None, None)
    assert order(rule(Space(queries, names[0]))) == slow(rule, queries, names[0])
    found = order(rule(Space(queries, names[0], gallery, names[1])))
    assert found == slow(rule, queries, names[0], gallery, names[1])


def test_re_ranking_changes_something() -> None:
    space = Space(unit(60, 3))
    assert order(SMALL(space)) != order(space)
    assert order(EXPANSION(space)) != order(space)


def test_the_distance_alone_is_the_plain_order() -> None:
    space = Space(unit(60, 3, copies=True), gallery=unit(40, 4, copies=True))
    assert order(KReciprocal(6, 3, distance_weight=1.0)(space)) == order(space)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_samples_does_not_matter(seed: int) -> None:
    queries, gallery = unit(12, seed), unit(20, seed + 1)
    ours, theirs = (np.random.default_rng(seed).permutation(size) for size in (12, 20))
    for rule in (SMALL, EXPANSION):
        plain = order(rule(Space(queries, gallery=gallery)))
        moved = order(rule(Space(queries[ours], gallery=gallery[theirs])))
        assert [[int(theirs[row]) for row in each] for each in moved] == [plain[i] for i in ours]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_excluded_and_who_else_asks_have_no_influence(seed: int) -> None:
    """Moving the other images of a patient, or the other queries, leaves the order of a query's gallery as it was."""
    vectors = unit(24, seed)
    groups = np.array(["a"] * 4 + [""] * 20)
    other = vectors.copy()
    other[1:4] = unit(3, seed + 1)
    for rule in (SMALL, EXPANSION):
        assert order(rule(Space(vectors, groups)))[0] == order(rule(Space(other, groups)))[0]
        asked = [order(rule(Space(each[:6], gallery=vectors[6:])))[0] for each in (vectors, other)]
        assert asked[0] == asked[1]


def test_distances_are_those_of_the_vectors_and_what_is_missing_is_padded() -> None:
    vectors = unit(6, 5)
    ranking = SMALL(Space(vectors, np.array(["a", "a", "", "", "", ""])))
    (part,) = ranking.chunks(10, 5)
    rows, distances = ranking.nearest(part, 5)
    assert rows[0, -1] == -1
    assert distances[0, -1] == np.inf
    np.testing.assert_allclose(distances[2], ((vectors[2] - vectors[rows[2]]) ** 2).sum(axis=1), atol=1e-8)


def test_a_query_of_another_length_keeps_it() -> None:
    vectors = torch.from_numpy(3 * unit(20, 6))
    expanded = EXPANSION(Space(vectors)).queries  # type: ignore[attr-defined]
    np.testing.assert_allclose(expanded.norm(dim=1), 3)


def test_what_cannot_fit_and_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reciprocal, "_MAX_CELLS", 400)
    with pytest.raises(UserError, match=r"keeps 9 neighbours .* of each of 60 images"):
        SMALL(Space(unit(60, 3), np.repeat(np.arange(15), 4).astype(str)))
    for wrong in ({"k1": 2, "k2": 3}, {"k2": 0}, {"distance_weight": 1.1}, {"shortlist": 0}):
        with pytest.raises(ValueError):
            KReciprocal(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        QueryExpansion(k=0)
