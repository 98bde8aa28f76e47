"""The picture of `subspace explain`: two images, and a row of their maps for every likeness.

Legend: S x S pixels of the evaluation image, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from launch.report import maps, theme
from launch.report.thumbnails import overlay

if TYPE_CHECKING:
    from launch.explain import Likeness
    from launch.seen import Seen


def as_picture(pixels: np.ndarray) -> Image.Image:
    """Return an RGB picture of (S, S, C) uint8."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")


def show(axes: Axes, picture: Image.Image) -> None:
    """Draw a picture over the unit square, pixel by pixel."""
    axes.imshow(np.asarray(picture), interpolation="nearest", extent=(0, 1, 1, 0))


def likeness_picture(query: Seen, match: Seen, likenesses: Sequence[Likeness]) -> bytes:
    """Return PNG bytes: the two images side by side, then a row per likeness with its maps laid over them."""
    with theme.style():
        figure = Figure(figsize=(4.6, 2.1 * (1 + len(likenesses))), layout="constrained")
        grid = figure.subplots(1 + len(likenesses), 2, squeeze=False)
        for axes, seen in zip(grid[0], (query, match), strict=True):
            show(axes, as_picture(seen.pixels))
            axes.set_title(maps.short(seen.name, 28), loc="center")
        for pair, found in zip(grid[1:], likenesses, strict=True):
            for axes, seen, heat in zip(pair, (query, match), (found.on_query, found.on_match), strict=True):
                show(axes, overlay(as_picture(seen.pixels), heat))
            pair[0].set_ylabel(f"{found.name}  {found.cosine:.2f}")
        for axes in grid.ravel():
            theme.quiet(axes)
        return theme.to_png(figure)
