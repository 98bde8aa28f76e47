"""Which images are shown: a keyed draw over different classes."""

from __future__ import annotations

import numpy as np

from launch.report import panels
from launch.report.collect import Arrays


def test_choose_takes_different_classes_first_and_repeats() -> None:
    labels = np.repeat(np.arange(5), 20)
    rows = np.flatnonzero(labels != 3)
    chosen = panels.choose(rows, labels, 4, seed=1, purpose="a")
    assert sorted(labels[chosen]) == [0, 1, 2, 4]
    assert chosen == panels.choose(rows, labels, 4, seed=1, purpose="a")
    assert chosen != panels.choose(rows, labels, 4, seed=2, purpose="a")
    assert len(set(panels.choose(rows, labels, 30, seed=1, purpose="a"))) == 30
    assert panels.choose(np.array([], dtype=int), labels, 4, seed=1, purpose="a") == []


def test_choose_is_fair_within_a_class() -> None:
    labels = np.zeros(4, dtype=int)
    first = [panels.choose(np.arange(4), labels, 1, seed=s, purpose="a")[0] for s in range(400)]
    assert np.bincount(first, minlength=4).min() > 60


def test_first_right_leaves_out_lone_queries() -> None:
    arrays = Arrays(
        sample_ids=np.arange(5),
        labels=np.array([0, 0, 1, 2, 2]),
        vectors=np.zeros((5, 2), np.float32),
        neighbours=np.array([[1], [2], [0], [-1], [3]]),
        distances=np.zeros((5, 1), np.float32),
        maps=None,
    )
    right, counts = panels.first_right(arrays)
    assert right.tolist() == [True, False, False, False, True]
    assert counts.tolist() == [True, True, False, False, True]
