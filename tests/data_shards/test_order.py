"""Batch order: exact sizes, balance and purity over a grid; the published step counts; small and pure clusters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import UserError
from data_shards.order import BatchRule, apportion, batches

# Class counts of the published training splits.
ISIC19 = [3349, 11059, 2094, 542, 2131, 182, 194, 449]
MURA = [2925, 2006, 3138, 1968, 1164, 661, 4059, 1484, 673, 599, 4211, 4168, 5765, 3987]
HYPERKVASIR = [738, 615, 806, 203, 308, 36, 32, 801, 791, 833, 311, 7, 912, 111, 540, 166, 853, 3, 27, 338, 9, 22, 105]

Case = tuple[np.ndarray, np.ndarray, int, BatchRule]


@st.composite
def cases(draw: st.DrawFn, schedules: tuple[Any, ...] = ("budget", "published")) -> Case:
    """Labels with classes of 1 to 40 rows, clusters of any size (some empty), and a rule."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=2, max_size=9))
    per_class = draw(st.sampled_from([n for n in (2, 4, 8) if n <= max(sizes)] or [1]))
    num_subspaces = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    assignment = rng.integers(-1, num_subspaces, len(labels)).astype(np.int32)
    rule = BatchRule(
        batch_size=per_class * draw(st.integers(2, 6)),
        samples_per_class=per_class,
        steps=draw(st.none() | st.integers(1, 30)),
        temperature=draw(st.sampled_from([0.0, 0.5, 1.0])),
        schedule=draw(st.sampled_from(schedules)),
    )
    return labels, assignment, num_subspaces, rule


def made(case: Case, seed: int = 0, epoch: int = 0) -> list[Any]:
    """The batches; none where no class has two rows in any cluster, which is a user error."""
    labels, assignment, num_subspaces, rule = case
    clusters = assignment if num_subspaces > 1 else np.zeros_like(assignment)
    pairs = Counter(zip(clusters[clusters >= 0].tolist(), labels[clusters >= 0].tolist(), strict=True))
    if max(pairs.values(), default=0) < 2:
        with pytest.raises(UserError, match="two samples"):
            batches(seed, epoch, assignment, labels, num_subspaces, rule)
        return []
    return batches(seed, epoch, assignment, labels, num_subspaces, rule)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_every_batch_is_full_balanced_and_of_one_subspace(case: Case) -> None:
    labels, assignment, num_subspaces, rule = case
    clusters = assignment if num_subspaces > 1 else np.zeros_like(assignment)
    for k, rows in made(case):
        assert rows.shape == (rule.batch_size,)
        assert rows.dtype == np.int64
        assert (clusters[rows] == k).all()
        in_cluster = Counter(labels[clusters == k].tolist())
        usable = [c for c, n in in_cluster.items() if n >= 2]
        counts = Counter(labels[rows].tolist())
        assert set(counts) <= set(usable), "a class with one member has no positive pair"
        if len(usable) >= rule.batch_size // rule.samples_per_class:
            assert set(counts.values()) == {rule.samples_per_class}
        else:
            assert set(counts) == set(usable)
            assert min(counts.values()) >= rule.samples_per_class


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases())
def test_rows_repeat_in_a_batch_only_when_their_class_ran_out(case: Case) -> None:
    labels, assignment, num_subspaces, _ = case
    clusters = assignment if num_subspaces > 1 else np.zeros_like(assignment)
    for k, rows in made(case):
        for c in np.unique(labels[rows]):
            available = int(((labels == c) & (clusters == k)).sum())
            times = Counter(rows[labels[rows] == c].tolist())
            assert len(times) == min(available, sum(times.values()))
            assert max(times.values()) - min(times.values()) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases(schedules=("budget",)))
def test_the_budget_is_kept_exactly_and_every_learnable_subspace_gets_a_step(case: Case) -> None:
    labels, assignment, num_subspaces, rule = case
    found = made(case)
    if not found:
        return
    clusters = assignment if num_subspaces > 1 else np.zeros_like(assignment)
    assert len(found) == (rule.steps or max(1, round(int((clusters >= 0).sum()) / rule.batch_size)))
    usable = {k: [n for n in Counter(labels[clusters == k].tolist()).values() if n >= 2] for k in range(num_subspaces)}
    learnable = {k for k, classes in usable.items() if len(classes) >= 2}
    steps = Counter(k for k, _ in found)
    if learnable:
        assert set(steps) <= learnable
        assert len(steps) == min(len(learnable), len(found))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases(), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_does_not_depend_on_what_was_asked_before(case: Case, seed: int, epoch: int) -> None:
    first = made(case, seed, epoch)
    np.random.default_rng(0)
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    made(case, seed + 1, epoch + 5)
    again = made(case, seed, epoch)
    assert [k for k, _ in first] == [k for k, _ in again]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert np.array_equal(state, np.random.get_state()[1])  # type: ignore[index]


def test_epochs_and_seeds_differ() -> None:
    labels = np.repeat(np.arange(6), 30)
    rule = BatchRule(16, 4)
    orders = [np.stack([r for _, r in batches(s, e, None, labels, 1, rule)]) for s in (0, 1) for e in (0, 1)]
    assert len({o.tobytes() for o in orders}) == 4


def test_a_class_is_walked_through_before_it_repeats() -> None:
    labels = np.repeat([0, 1], [40, 37])
    found = batches(3, 1, None, labels, 1, BatchRule(16, 8, steps=12))
    for c, visits_per_lap in ((0, 5), (1, 4)):
        walk = [rows[labels[rows] == c] for _, rows in found]
        for lap in range(0, 12 - visits_per_lap + 1, visits_per_lap):
            seen = np.concatenate(walk[lap : lap + visits_per_lap])
            assert len(np.unique(seen)) == len(seen) == 8 * visits_per_lap


@pytest.mark.parametrize(("counts", "steps"), [(ISIC19, 625), (MURA, 1150), (HYPERKVASIR, 267)])
def test_published_steps_per_epoch(counts: list[int], steps: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    found = batches(0, 0, None, labels, 1, BatchRule(32, 8, schedule="published"))
    assert len(found) == steps
    assert all(set(Counter(labels[rows].tolist()).values()) == {8} for _, rows in found)


def test_published_schedule_is_a_round_robin_of_the_largest() -> None:
    labels = np.tile(np.arange(5), 80)
    assignment = np.repeat([0, 1, 2], [200, 150, 50])
    found = batches(0, 0, assignment, labels, 3, BatchRule(16, 4, schedule="published"))
    assert [k for k, _ in found] == [0, 1, 2] * (200 // 16)


@pytest.mark.parametrize("schedule", ["budget", "published"])
@pytest.mark.parametrize("members", [4, 31, 32])
def test_a_cluster_of_at_most_a_batch_trains(members: int, schedule: Any) -> None:
    labels = np.arange(400) % 4
    assignment = np.where(np.arange(400) < members, 1, 0)
    found = batches(0, 0, assignment, labels, 2, BatchRule(32, 8, schedule=schedule))
    small = [rows for k, rows in found if k == 1]
    assert bool(small) == (members > 4)  # four rows of four classes: no positive pair at all
    assert all(len(rows) == 32 and rows.max() < members for rows in small)


@pytest.mark.parametrize("schedule", ["budget", "published"])
def test_a_single_class_cluster_gets_no_step_while_others_can_learn(schedule: Any) -> None:
    labels = np.repeat([0, 1, 2], 100)
    assignment = np.repeat([0, 1, 1], 100)
    found = batches(0, 0, assignment, labels, 2, BatchRule(16, 4, schedule=schedule))
    assert {k for k, _ in found} == {1}
    pure = batches(0, 0, np.repeat([0, 1, 2], 100), labels, 3, BatchRule(16, 4, schedule=schedule))
    assert {k for k, _ in pure} == {0, 1, 2}, "when every cluster is pure the run goes on to the next clustering"


def test_spread_of_subspaces_is_even() -> None:
    labels = np.tile(np.arange(4), 250)
    sizes = [600, 250, 100, 50]
    assignment = np.repeat(np.arange(4), sizes)
    order = np.array([k for k, _ in batches(0, 2, assignment, labels, 4, BatchRule(8, 2, steps=200))])
    for k, size in enumerate(sizes):
        assert (order == k).sum() == size * 200 // 1000
        ahead = np.cumsum(order == k) - np.arange(1, 201) * size / 1000
        assert np.abs(ahead).max() < 3


def test_uniform_temperature_ignores_size() -> None:
    labels = np.tile(np.arange(4), 100)
    assignment = np.repeat([0, 1], [360, 40])
    rule = BatchRule(8, 2, steps=50, temperature=0.0)
    assert Counter(k for k, _ in batches(0, 0, assignment, labels, 2, rule)) == {0: 25, 1: 25}


def test_scarce_steps_take_turns_over_the_epochs() -> None:
    labels = np.tile(np.arange(4), 100)
    assignment = np.repeat(np.arange(4), 100)
    seen = {k for e in range(20) for k, _ in batches(0, e, assignment, labels, 4, BatchRule(8, 2, steps=2))}
    assert seen == {0, 1, 2, 3}


def test_few_classes_take_unused_rows_before_repeating() -> None:
    labels = np.repeat([0, 1], [3, 60])
    for _, rows in batches(0, 0, None, labels, 1, BatchRule(32, 8)):
        assert Counter(labels[rows].tolist()) == {0: 8, 1: 24}
        assert len(np.unique(rows[labels[rows] == 1])) == 24


def test_plain_batches_are_a_shuffle() -> None:
    labels = np.zeros(100, dtype=np.int64)
    found = batches(0, 0, None, labels, 1, BatchRule(32, 0))
    rows = np.concatenate([r for _, r in found])
    assert len(found) == 3
    assert len(np.unique(rows)) == 96
    short = batches(0, 0, None, labels[:5], 1, BatchRule(32, 0))
    assert Counter(Counter(short[0][1].tolist()).values()) == {6: 3, 7: 2}


def test_left_out_rows_stay_out() -> None:
    labels = np.tile(np.arange(4), 50)
    assignment = np.where(np.arange(200) % 7 == 0, -1, np.arange(200) // 100)
    rows = np.concatenate([r for _, r in batches(0, 0, assignment, labels, 2, BatchRule(8, 2))])
    assert not (rows % 7 == 0).any()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.integers(0, 1000))
def test_apportion_is_exact_and_close(weights: list[float], extra: int) -> None:
    total = len(weights) + extra
    exact = np.array(weights) / sum(weights) * total
    counts = apportion(np.array(weights), total)
    assert counts.sum() == total
    assert counts.min() >= 1
    if exact.min() >= 1:
        assert np.abs(counts - exact).max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BatchRule(30, 8), "not divisible"),
        (lambda: BatchRule(8, 8), "no negative"),
        (lambda: BatchRule(0, 0), "batch size"),
        (lambda: BatchRule(8, 2, steps=0), "steps per epoch"),
        (lambda: BatchRule(8, 2, temperature=-1), "temperature"),
        (lambda: BatchRule(8, 2, schedule="epochs"), "schedule"),  # type: ignore[arg-type]
        (lambda: batches(0, 0, None, np.zeros(50, int), 1, BatchRule(8, 2)), "one class only"),
        (lambda: batches(0, 0, None, np.arange(50) // 5, 1, BatchRule(16, 8)), "largest class"),
        (lambda: batches(0, 0, None, np.zeros(0, int), 1, BatchRule(8, 2)), "empty"),
        (lambda: batches(0, 0, np.zeros(3, int), np.arange(50) // 5, 2, BatchRule(8, 2)), "recluster"),
    ],
)
def test_user_errors(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_class_temperature_moves_the_draw_towards_the_prior() -> None:
    sizes = np.array([400, 100, 100, 25, 25])
    labels = np.repeat(np.arange(5), sizes)

    def drawn(temperature: float) -> np.ndarray:
        rule = BatchRule(8, 4, steps=4000, class_temperature=temperature)
        found = np.zeros(5)
        for _, rows in batches(0, 0, None, labels, 1, rule):
            present, counts = np.unique(labels[rows], return_counts=True)
            assert counts.tolist() == [4, 4]
            found[present] += 1
        return found / 4000

    np.testing.assert_allclose(drawn(0.0), 0.4, atol=0.04)
    p = sizes / sizes.sum()  # two draws without replacement: first with p, second with p among the others
    expected = p + np.array([sum(p[j] * p[i] / (1 - p[j]) for j in range(5) if j != i) for i in range(5)])
    np.testing.assert_allclose(drawn(1.0), expected, atol=0.04)
