"""Orders of long splits: the promises of the short ones, and that a part costs and changes nothing."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from data_shards import order
from data_shards.augment import AugmentConfig
from data_shards.loader import train_loader
from data_shards.long_order import LongOrder
from data_shards.order import BatchRule, batches
from tests.data_shards.test_loader import uniform_reader
from tests.data_shards.test_order import Case, cases


@pytest.fixture(autouse=True)
def _long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LONG", 0)


def made(case: Case, epoch: int = 0) -> Any:
    labels, assignment, num_subspaces, rule = case
    try:
        return batches(0, epoch, assignment, labels, num_subspaces, rule)
    except order.UserError:
        return []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_batches_are_full_balanced_and_of_one_subspace(case: Case) -> None:
    labels, assignment, num_subspaces, rule = case
    clusters = assignment if num_subspaces > 1 else np.zeros_like(assignment)
    found = made(case)
    for index, (k, rows) in enumerate(found):
        assert rows.shape == (rule.batch_size,)
        assert (clusters[rows] == k).all()
        assert np.array_equal(found.labels(index), labels[rows])
        usable = [c for c, n in Counter(labels[clusters == k].tolist()).items() if n >= 2]
        counts = Counter(labels[rows].tolist())
        if len(usable) >= rule.batch_size // rule.samples_per_class:
            assert set(counts.values()) == {rule.samples_per_class}
        else:
            assert set(counts) == set(usable)
        for c in counts:
            times = Counter(rows[labels[rows] == c].tolist())
            assert len(times) == min(int(((labels == c) & (clusters == k)).sum()), counts[c])
            assert max(times.values()) - min(times.values()) <= 1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases())
def test_parts_slices_and_copies_agree_with_the_whole(case: Case) -> None:
    found = made(case)
    if not found:
        return
    again = pickle.loads(pickle.dumps(found))
    half = len(found) // 2
    for index in range(len(found)):
        subspace, rows = found[index]
        cut = len(rows) // 3
        parts = [again.part(index, [slice(0, cut)]), again.part(index, [slice(cut, None)])]
        assert {part[0] for part in parts} == {subspace}
        assert np.array_equal(np.concatenate([part[1] for part in parts]), rows)
        if index >= half:
            assert np.array_equal(found[half:][index - half][1], rows)
    assert [k for k, _ in found[half:]] == [k for k, _ in found][half:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_two_visits_of_a_row_look_alike(temperature: float) -> None:
    labels = np.repeat(np.arange(9), [40, 30, 30, 8, 8, 5, 4, 3, 2])
    for rule in (BatchRule(12, 4, steps=50, class_temperature=temperature), BatchRule(48, 4, steps=9)):
        found = batches(0, 0, None, labels, 1, rule)
        assert isinstance(found, LongOrder)
        seen = [tuple(pair) for i in range(len(found)) for pair in zip(*found.part(i, [slice(None)])[1:], strict=True)]
        assert len(set(seen)) == len(seen)


def test_a_class_is_walked_through_before_it_repeats_and_classes_come_in_rounds() -> None:
    labels = np.repeat(np.arange(6), [40, 40, 40, 40, 40, 40])
    found = batches(3, 1, None, labels, 1, BatchRule(16, 8, steps=30))
    drawn = [sorted(set(labels[rows].tolist())) for _, rows in found]
    assert all(sorted(itertools.chain(*drawn[i : i + 3])) == list(range(6)) for i in range(0, 30, 3))
    for c in range(6):
        walk = np.concatenate([rows[labels[rows] == c] for _, rows in found])
        assert all(len(set(walk[lap : lap + 40].tolist())) == 40 for lap in (0, 40))
    assert len({rows.tobytes() for _, rows in found}) == 30


def test_epochs_and_seeds_differ() -> None:
    labels, rule = np.repeat(np.arange(6), 30), BatchRule(16, 4)
    pairs = itertools.product((0, 1), (0, 1))
    assert len({np.stack([r for _, r in batches(*each, None, labels, 1, rule)]).tobytes() for each in pairs}) == 4


def test_ranks_of_a_loader_rebuild_the_whole() -> None:
    reader, config = uniform_reader(), AugmentConfig(20, hflip=True, rotate_degrees=30)
    long = batches(0, 1, None, reader.labels, 1, BatchRule(12, 4, steps=5))
    whole = list(train_loader(reader, long, config, 0, 1))
    halves = [list(train_loader(reader, long, config, 0, 1, position=cut)) for cut in ((0, 6), (6, 12))]
    for index, batch in enumerate(whole):
        assert np.array_equal(batch.sample_ids.numpy(), reader.sample_ids[long[index][1]])
        assert torch.equal(torch.cat([half[index].images for half in halves]), batch.images)
    later = list(train_loader(reader, long, config, 0, 1, start_step=3, num_workers=1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(later, whole[3:], strict=True))


@pytest.mark.parametrize("samples_per_class", [0, 4])
def test_labels_are_those_of_the_rows(samples_per_class: int) -> None:
    labels = np.random.default_rng(0).integers(0, 5, 90)
    found = batches(0, 0, np.arange(90, dtype=np.int8) % 2, labels, 2, BatchRule(8, samples_per_class))
    assert isinstance(found, LongOrder)
    for index, (_, rows) in enumerate(found):
        assert np.array_equal(found.labels(index), labels[rows])
