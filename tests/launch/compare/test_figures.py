"""The forest plot: what is drawn where, and in which colour."""

from __future__ import annotations

import pytest

from launch.compare.bootstrap import Interval
from launch.compare.comparison import Block, Row
from launch.compare.figures import difference_figure
from launch.report import theme
from launch.report.figures import NARROW, WIDE

LONG = " of a very long title indeed"


def block_of(**differences: Interval) -> Block:
    rows = [Row("adsl", "ADSL", 2, {}, {}, {}, {})]
    rows += [
        Row(name, f"{name} of a very long title indeed", 2, {}, {}, {}, {"nmi": d}) for name, d in differences.items()
    ]
    return Block("digits", "digits", "test", rows, [])


def test_colour_tells_on_which_side_of_zero_the_interval_lies() -> None:
    found = {"better": (0.1, 0.2), "worse": (-0.2, -0.1), "either": (-0.1, 0.1)}
    block = block_of(**{name: Interval(sum(ends) / 2, *ends, 2) for name, ends in found.items()})
    figure = difference_figure(block, ["nmi"], WIDE)
    assert figure is not None
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2][1:]  # after the one at zero
    assert [tuple(line.get_xdata()) for line in lines] == list(found.values())
    assert [line.get_color() for line in lines] == [theme.SERIES[0], theme.SERIES[1], theme.MUTED]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{name}{LONG}"[:25] + "…" for name in found]


@pytest.mark.parametrize(("width", "columns"), [(WIDE, 4), (NARROW, 2)])
def test_panels_of_metrics(width: float, columns: int) -> None:
    metrics = ["nmi", "ami", "recall_at_1", "recall_at_2", "map_at_r"]
    row = Row("mml", "mml", 1, {}, {}, {}, {m: Interval(0.0, -0.1, 0.1, 1) for m in metrics})
    figure = difference_figure(Block("d", "d", "test", [row], []), metrics, width)
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 5
    assert shown[0].get_gridspec().ncols == columns


def test_nothing_to_draw() -> None:
    assert difference_figure(block_of(), ["nmi"], WIDE) is None
