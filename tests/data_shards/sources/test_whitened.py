"""Painted squares are found by their straight edges; white background, however large, is not one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.sources.whitened import WhitenedSquares

SIDE = 20
Place = tuple[int, int]


def found(scan: np.ndarray) -> np.ndarray:
    """Return the pixels in boxes of whitened squares."""
    squares, covered = WhitenedSquares(scan.shape[1], SIDE), np.zeros(scan.shape, bool)
    for row in scan == 255:
        for top, bottom, left, right in squares.feed(row):
            assert (scan[top:bottom, left:right] == 255).all()
            covered[top:bottom, left:right] = True
    return covered


def tissue(height: int = 90, width: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 255, (height, width), dtype=np.uint8)


def saturated(seed: int) -> np.ndarray:
    """Return a scan whose left part is background of exactly 255 up to a wavy, ragged edge."""
    rng = np.random.default_rng(seed)
    scan = tissue(120, 100, seed)
    wave = 57 + 8 * np.sin(np.arange(len(scan)) / 15 + seed) + rng.integers(-3, 4, len(scan))
    for row, edge in enumerate(wave.astype(int)):
        scan[row, :edge] = 255
    return scan


def paint(scan: np.ndarray, *places: Place) -> np.ndarray:
    """Return the pixels of painted squares at (top, left), and paint them."""
    painted = np.zeros(scan.shape, bool)
    for top, left in places:
        painted[top : top + SIDE, left : left + SIDE] = True
    scan[painted] = 255
    return painted


place = st.tuples(st.integers(1, 90 - SIDE - 1), st.integers(1, 100 - SIDE - 1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(place, max_size=2), st.integers(0, 3))
def test_all_of_squares_in_tissue_and_nothing_else(places: list[Place], seed: int) -> None:
    scan = tissue(seed=seed)
    assert np.array_equal(paint(scan, *places), found(scan))


@pytest.mark.parametrize(
    "places", [[(0, 0)], [(70, 80)], [(0, 40), (20, 40), (40, 40)], [(30, 20), (30, 40), (30, 60)]]
)
def test_squares_at_the_border_and_side_by_side(places: list[Place]) -> None:
    scan = tissue()
    assert np.array_equal(paint(scan, *places), found(scan))


@pytest.mark.parametrize("size", [(SIDE - 1, 60), (60, SIDE - 1)])
def test_what_is_smaller_is_none(size: Place) -> None:
    scan = tissue()
    scan[10 : 10 + size[0], 10 : 10 + size[1]] = 255
    assert not found(scan).any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("turned", [False, True])
def test_saturated_background_with_a_ragged_edge_is_none(seed: int, turned: bool) -> None:
    scan = saturated(seed)
    assert not found(np.ascontiguousarray(scan.T) if turned else scan).any()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("turned", [False, True])
def test_a_square_at_the_edge_of_saturated_background_is_found(seed: int, turned: bool) -> None:
    scan = saturated(seed)
    painted = paint(scan, (50, 67))
    if turned:
        scan, painted = np.ascontiguousarray(scan.T), painted.T
    covered = found(scan)
    assert covered[painted].all()
    assert (covered & ~painted).sum() < 2 * SIDE * SIDE


def test_all_white_and_noisy_white_are_none() -> None:
    assert not found(np.full((60, 60), 255, np.uint8)).any()
    rng = np.random.default_rng(0)
    assert not found(np.where(rng.random((80, 80)) < 0.99, 255, 254).astype(np.uint8)).any()
