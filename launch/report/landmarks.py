"""The picture of `subspace localise`: the marked image, then queries under their likeness, with what was found.

Legend: L landmarks, S x S pixels of the evaluation image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.report import maps, theme
from launch.report.likeness import as_picture, show
from launch.report.thumbnails import overlay

if TYPE_CHECKING:
    from launch.localise import Found
    from launch.seen import Seen

FOUND, TRUE = "#ffb000", "#33e0ff"  # on heat, on skin, on gray
_COLUMNS = 4


def landmarks_picture(support: Seen, points: np.ndarray, found: Sequence[Found]) -> bytes:
    """Return PNG bytes; crosses are what was found, rings what is true, in the marked image what was marked."""
    cells = 1 + len(found)
    rows = -(-cells // _COLUMNS)
    with theme.style():
        figure = Figure(figsize=(2.1 * _COLUMNS, 2.35 * rows), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        show(grid[0], as_picture(support.pixels))
        _mark(grid[0], support, points, TRUE, "o")
        grid[0].set_title(f"marked: {maps.short(support.name, 20)}", loc="center")
        for axes, each in zip(grid[1:cells], found, strict=True):
            show(axes, overlay(as_picture(each.query.pixels), each.heat.max(axis=0)))
            if each.truth is not None:
                _mark(axes, each.query, each.truth, TRUE, "o")
            _mark(axes, each.query, each.places, FOUND, "+")
            away = "" if each.errors is None else f", {each.errors.max():.1f} px"
            axes.set_title(maps.short(each.query.name, 20) + away, loc="center")
        for axes in grid:
            theme.quiet(axes)
        for axes in grid[cells:]:
            axes.set_visible(False)
        return theme.to_png(figure)


def _mark(axes: Axes, image: Seen, places: np.ndarray, colour: str, marker: str) -> None:
    inside = [image.evaluated(x, y) for x, y in places]
    side = len(image.pixels)
    x, y = ([(place[axis] + 0.5) / side for place in inside] for axis in (0, 1))
    axes.plot(x, y, marker, color=colour, markersize=8, markeredgewidth=1.6, markerfacecolor="none")
