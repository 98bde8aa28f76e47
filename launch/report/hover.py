"""Places on a map where a reader's pointer shows the image: no script, so that the page needs none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from data_shards import keyed
from launch.report.collect import Evaluation
from launch.report.thumbnails import Thumbnails

NUM_SPOTS = 200  # of 3 KB each


@dataclass(frozen=True)
class Spot:
    """An image at a place of a figure, in per cent from its left and upper edge."""

    left: float
    top: float
    uri: str
    name: str


def places(figure: Figure, points: np.ndarray) -> np.ndarray:
    """Return (n, 2) per cent from left and top, of (n, 2) points in the data of a figure's only axes."""
    figure.draw_without_rendering()  # the layout is made when it is drawn
    pixels = figure.axes[0].transData.transform(points)
    width, height = figure.bbox.width, figure.bbox.height
    return np.stack([100 * pixels[:, 0] / width, 100 * (1 - pixels[:, 1] / height)], axis=1)


def spots(
    figure: Figure, points: np.ndarray, rows: np.ndarray, evaluation: Evaluation, thumbnails: Thumbnails, seed: int
) -> list[Spot]:
    """Return spots of a keyed draw among (n, 2) points; `rows` (n,) are their rows among the evaluated images."""
    arrays = evaluation.arrays
    assert arrays is not None
    chosen = np.sort(keyed.generator(seed, "report hover").permutation(len(points))[:NUM_SPOTS])
    found = []
    for (left, top), row in zip(places(figure, points[chosen]).tolist(), rows[chosen].tolist(), strict=True):
        uri = thumbnails.uri(int(arrays.sample_ids[row]))
        if uri is not None:
            found.append(Spot(round(left, 2), round(top, 2), uri, evaluation.class_name(int(arrays.labels[row]))))
    return found
