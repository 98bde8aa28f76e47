"""Small pictures: the view of the evaluation, and attention laid over."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.reader import open_shards
from launch.report import thumbnails
from launch.report.collect import read_run


def test_pictures_are_the_stored_images(digit_run: Path) -> None:
    opened, note = thumbnails.open_thumbnails(read_run(digit_run), "test")
    assert opened is not None
    assert note == ""
    reader = open_shards(digit_run.parent / "shards").split("test")
    row = 5
    uri = opened.uri(int(reader.sample_ids[row]))
    assert uri is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    stored = reader.image(row)
    assert shown.shape[:2] == stored.shape[:2]
    assert np.array_equal(shown[..., 0], stored[..., 0])
    assert opened.picture(10**9) is None
    assert opened.uri(10**9) is None


def test_the_reason_for_no_pictures_is_told(digit_run: Path) -> None:
    opened, note = thumbnails.open_thumbnails(read_run(digit_run), "holdout")
    assert opened is None
    assert "holdout" in note


@pytest.mark.parametrize(
    ("size", "resize", "expected"), [(32, None, 1.0), (16, None, 0.875), (16, 20, 0.8), (16, 12, 1.0)]
)
def test_view_is_what_evaluation_keeps(digit_run: Path, size: int, resize: int | None, expected: float) -> None:
    run = read_run(digit_run)
    run.config["data"] = {"image_size": size, "resize": resize}
    assert thumbnails.view_fraction(run, digit_run.parent / "shards") == pytest.approx(expected)


def test_overlay_is_brightest_where_attention_is() -> None:
    attention = np.zeros((4, 4))
    attention[0, 3] = 0.7
    laid = np.asarray(thumbnails.overlay(Image.new("RGB", (120, 120), (60, 60, 60)), attention)).astype(float).sum(-1)
    assert laid[:20, -20:].min() > laid[40:, :80].max()
    flat = np.asarray(thumbnails.overlay(Image.new("RGB", (120, 120), (60, 60, 60)), np.full((4, 4), np.nan)))
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() == 0


def test_big_pictures_are_small_files() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (144, 144, 3), dtype=np.uint8)
    assert thumbnails.encoded(Image.fromarray(noise)).startswith("data:image/jpeg")
    assert thumbnails.encoded(Image.new("RGB", (28, 28))).startswith("data:image/png")
