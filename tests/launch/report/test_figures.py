"""Curves: what is summarised, and what is not drawn at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.report import figures
from tests.launch.report.test_tables import run_of


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=3000))
def test_bins_hold_every_point_in_order(values: list[float]) -> None:
    loss = np.array(values)
    centre, mean, low, high = figures.binned(np.arange(len(loss), dtype=float), loss)
    assert min(len(loss), 24) <= len(centre) <= 240
    assert (np.diff(centre) > 0).all()
    assert (low <= high + 1e-12).all()
    sizes = [len(p) for p in np.array_split(loss, len(centre))]
    assert np.average(mean, weights=sizes) == pytest.approx(loss.mean(), abs=1e-9)


def test_nothing_to_show_is_no_figure() -> None:
    empty = run_of()
    for draw in (
        figures.loss_figure,
        figures.score_figure,
        figures.growth_figure,
        figures.cluster_figure,
        figures.stability_figure,
    ):
        assert draw(empty) is None
    assert figures.loss_figure(run_of(steps=[{"epoch": 0, "step": 0, "loss": float("nan")}])) is None
    assert figures.num_epochs(empty) == 1
