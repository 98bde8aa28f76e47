"""Votes of neighbours against counting by hand, their calibration against its formula."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.report import calibration, theme
from launch.report.collect import Arrays


def arrays_of(labels: list[int], neighbours: list[list[int]]) -> Arrays:
    found = np.array(neighbours, dtype=np.int64)
    count = len(labels)
    nothing = np.zeros((count, 2), dtype=np.float32)
    own = np.array(labels, dtype=np.int64)
    return Arrays(np.arange(count), own, nothing, found, np.zeros(found.shape, dtype=np.float32), None)


@given(st.integers(0, 10_000), st.integers(3, 30), st.integers(1, 7))
def test_votes_are_what_counting_gives(seed: int, count: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    neighbours = rng.integers(0, count, (count, k))
    for row in neighbours:
        row[rng.integers(0, k + 1) :] = -1  # so many neighbours only
    arrays = arrays_of(labels.tolist(), neighbours.tolist())
    found = calibration.neighbour_votes(arrays)
    expected = []
    for row in np.flatnonzero(arrays.queries()):
        classes = [int(labels[other]) for other in neighbours[row] if other >= 0]
        votes = Counter(classes)
        most = max(votes.values())
        winner = next(label for label in classes if votes[label] == most)
        expected.append((most / len(classes), winner == labels[row]))
    assert found.shares.tolist() == pytest.approx([share for share, _ in expected])
    assert found.right.tolist() == [right for _, right in expected]


def test_error_is_the_mean_distance_of_bins_from_the_diagonal() -> None:
    votes = calibration.Votes(np.array([0.5, 0.5, 1.0, 1.0, 1.0]), np.array([True, False, True, True, False]))
    assert votes.bins() == [(0.5, 0.5, 2), (1.0, pytest.approx(2 / 3), 3)]
    assert votes.error() == pytest.approx(3 / 5 * (1 / 3))
    assert calibration.Votes(np.array([]), np.array([], dtype=bool)).error() == 0


def test_the_figure_has_a_bar_per_range() -> None:
    votes = calibration.Votes(np.array([0.5, 0.9, 1.0]), np.array([True, False, True]))
    with theme.style():
        figure = calibration.calibration_figure(votes)
    assert figure is not None
    assert len(figure.axes[0].patches) == 3
    assert calibration.calibration_figure(calibration.Votes(np.array([]), np.array([], dtype=bool))) is None
