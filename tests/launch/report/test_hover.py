"""Places that show their image lie on the points of the map."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.report import hover, maps, theme
from launch.report.collect import read_run
from launch.report.thumbnails import open_thumbnails


def test_places_are_those_of_the_drawn_points() -> None:
    points = np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 3.0]])
    with theme.style():
        figure, axes = theme.new_figure(4, 4)
        axes.scatter(points[:, 0], points[:, 1], c="#ff0000", s=60, linewidths=0)
        theme.quiet(axes)
        found = hover.places(figure, points)
        pixels = np.asarray(Image.open(io.BytesIO(theme.to_png(figure))).convert("RGB"))
    height, width = pixels.shape[:2]
    for left, top in found:
        assert pixels[int(top / 100 * height), int(left / 100 * width), 0] > 200
        assert pixels[int(top / 100 * height), int(left / 100 * width), 1] < 60


def test_spots_are_images_of_the_split(digit_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hover, "NUM_SPOTS", 20)
    run = read_run(digit_run)
    opened, _ = open_thumbnails(run, "test")
    evaluation = run.pictured
    assert opened is not None
    assert evaluation is not None
    assert evaluation.arrays is not None
    rows = np.arange(5, 65)
    points = np.random.default_rng(0).normal(size=(60, 2))
    with theme.style():
        figure = maps.map_figure(evaluation, points, evaluation.arrays.labels[rows], "t-SNE")
        found = hover.spots(figure, points, rows, evaluation, opened, seed=1)
    assert len(found) == 20
    assert all(0 <= spot.left <= 100 and 0 <= spot.top <= 100 for spot in found)
    known = {opened.uri(int(evaluation.arrays.sample_ids[row])): str(evaluation.arrays.labels[row]) for row in rows}
    assert all(known[spot.uri] == spot.name for spot in found)
