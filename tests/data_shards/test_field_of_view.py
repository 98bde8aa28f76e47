from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from data_shards.decode import Unreadable
from data_shards.field_of_view import DARK, MARGIN_PX, fundus_region
from data_shards.field_of_view import lit as lit_pixels

REAL = os.environ.get("SUBSPACE_DATA")


def largest_component(lit: np.ndarray) -> set[tuple[int, int]]:
    """Return the pixels of the largest 8-connected component, by walking from pixel to pixel."""
    left, best = {(int(y), int(x)) for y, x in np.argwhere(lit)}, set()
    while left:
        part = {min(left)}
        edge = set(part)
        while edge:
            edge = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left - part
            part |= edge
        left -= part
        best = part if len(part) > len(best) else best  # the first of equals, by its topmost pixel
    return best


@given(arrays(bool, st.tuples(st.integers(1, 60), st.integers(1, 60)), elements=st.booleans(), fill=st.just(False)))
@settings(max_examples=80, deadline=None)
def test_the_box_of_the_largest_component_and_a_margin(lit: np.ndarray) -> None:
    image = np.full((*lit.shape, 3), DARK, np.uint8)
    image[lit, 1] = DARK + 1
    if not lit.any():
        with pytest.raises(Unreadable, match="no pixel is above 20"):
            fundus_region(image)
        return
    part = np.array(sorted(largest_component(lit)))
    low, high = part.min(axis=0) - MARGIN_PX, part.max(axis=0) + 1 + MARGIN_PX
    (top, left), (bottom, right) = low.clip(0), np.minimum(high, lit.shape)
    assert fundus_region(image) == (top, bottom, left, right)


def test_too_small_a_part_of_the_image() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[10:60, 30:80, 0] = 200
    image[80:90, 0:10] = 255
    assert fundus_region(image, min_share=0.25) == (0, 76, 14, 96)
    image[10, 30] = 0
    with pytest.raises(Unreadable, match=r"25% of the image, less than 25%"):
        fundus_region(image, min_share=0.25)


@pytest.mark.skipif(REAL is None, reason="SUBSPACE_DATA names no folder with real sets")
def test_the_field_of_view_that_publishers_drew() -> None:
    for number in (21, 28, 40):
        folder = Path(str(REAL)) / "drive"
        drawn = np.argwhere(np.asarray(Image.open(folder / "fov" / f"{number}.png").convert("L")) > 0)
        low, high = drawn.min(axis=0) - MARGIN_PX, drawn.max(axis=0) + 1 + MARGIN_PX
        top, bottom, left, right = fundus_region(np.asarray(Image.open(folder / "images" / f"{number}.png")))
        expected = [max(0, low[0]), min(584, high[0]), max(0, low[1]), min(565, high[1])]
        assert np.abs(np.array([top, bottom, left, right]) - expected).max() <= 2


def test_what_is_lit_has_one_channel_above_black() -> None:
    image = np.array([[[0, 0, 0], [DARK, DARK, DARK]], [[0, 0, DARK + 1], [255, 0, 0]]], dtype=np.uint8)
    assert lit_pixels(image).tolist() == [[False, False], [True, True]]
