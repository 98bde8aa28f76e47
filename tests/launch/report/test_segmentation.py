"""Pictures of segmentations: which images are shown, and outlines that lie on their masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from launch.report.segmentation import NAMES, PREDICTED, TRUE, _outline, lead, picked


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_best_median_and_worst_are_what_they_are_called(values: list[float]) -> None:
    dice = np.array(values)
    found = picked(dice)
    places = [place for _, place in found]
    assert len(set(places)) == len(places) == min(6, len(dice))
    groups = {name: dice[[p for n, p in found if n == name]] for name in ("best", "median", "worst")}
    order = np.sort(dice)[::-1]
    assert groups["best"].tolist() == order[:2].tolist()
    if len(dice) >= 6:
        assert sorted(groups["worst"]) == sorted(order[-2:])
        assert groups["median"].min() <= np.median(dice) <= groups["median"].max()
    assert [name for name, _ in found] == sorted((n for n, _ in found), key=["best", "median", "worst"].index)


@pytest.mark.parametrize("corner", [False, True])
def test_an_outline_is_the_border_of_its_mask(corner: bool) -> None:
    mask = np.zeros((20, 20), dtype=bool)
    rows, columns = (slice(0, 5), slice(0, 8)) if corner else (slice(6, 11), slice(3, 15))
    mask[rows, columns] = True
    axes = Figure().add_subplot()
    _outline(axes, mask, TRUE)
    points = np.concatenate([path.vertices for c in axes.collections for path in c.get_paths()]) * 20
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    assert (left, right) == pytest.approx((columns.start, columns.stop))
    assert (top, bottom) == pytest.approx((rows.start, rows.stop))


def test_an_empty_mask_has_no_outline() -> None:
    axes = Figure().add_subplot()
    _outline(axes, np.zeros((8, 8), dtype=bool), PREDICTED)
    assert not axes.collections
    assert axes.get_ylim() == (1, 0)


def test_the_lead_names_the_best_of_the_others() -> None:
    methods = {name: {"dice": {"mean": 0.5 if name == "otsu" else 0.0}} for name in NAMES}
    scores = {
        "methods": methods,
        "scored_on": {"images": "test", "num_images": 1234},
        "thresholds_from": {"images": "validation", "num_images": 56},
    }
    text = lead(scores)
    assert "1,234 images of test, attention reaches a mean Dice of 0.000" in text
    assert "Otsu's grey level is best, 0.500" in text
    assert "56 images of validation" in text
