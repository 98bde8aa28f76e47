"""What `region`, `mask_above` and `beside` of a record do to its row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.decode import UInt8Array, Unreadable, decode_stored
from data_shards.field_of_view import Region
from data_shards.rendering import Form, probe, render
from data_shards.sources.listing import Record


def rows_10_to_30(image: UInt8Array) -> Region:
    assert image.shape == (40, 50, 3)
    return 10, 30, 5, 45


def rendered(record: Record, form: Form) -> tuple[np.ndarray, np.ndarray | None]:
    """Return image and mask of the row."""
    facts, stored = render(record, probe(record, None), form)
    blobs = stored[: facts["image"]], stored[facts["image"] :]
    shape = (facts["height"], facts["width"])
    if form.stored == "raw":
        image = np.frombuffer(blobs[0], np.uint8).reshape(*shape, form.channels)
    else:
        image = decode_stored(blobs[0], *shape, form.channels, None)
    return image, decode_stored(blobs[1], *shape, 1, None)[..., 0] if facts["mask"] else None


@pytest.mark.parametrize(("stored", "channels"), [("raw", 3), ("raw", 1), ("as-is", 3), ("png", 3)])
def test_image_and_mask_are_cut_alike(tmp_path: Path, write_image, stored: str, channels: int) -> None:
    file = write_image(tmp_path / "x.png", 40, 50)
    whole = np.asarray(Image.open(file))
    record = Record("x.png", "a", "train", file=file, region=rows_10_to_30, mask=lambda: whole[..., 1])
    image, mask = rendered(record, Form(None, stored, "crop", channels))
    expected = Image.fromarray(whole[10:30, 5:45])
    assert np.array_equal(image.squeeze(), np.asarray(expected if channels == 3 else expected.convert("L")))
    assert np.array_equal(mask, whole[10:30, 5:45, 1])


def test_a_region_is_looked_for_in_the_whole_jpeg(tmp_path: Path, write_image) -> None:
    record = Record("x", "a", "train", file=write_image(tmp_path / "x.jpg", 40, 50), region=rows_10_to_30)
    image, _ = rendered(record, Form(4, "raw", "crop", 3))  # a draft would have a quarter of the sides
    assert image.shape == (4, 4, 3)


def test_shades_become_masks(tmp_path: Path, write_image) -> None:
    shades = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))
    file = write_image(tmp_path / "x.png", 40, 50)
    record = Record("x", "a", "train", file=file, mask=lambda: shades, mask_above=0.3)
    _, mask = rendered(record, Form(None, "raw", "crop", 3))
    assert np.array_equal(mask, np.where(shades > 76, 255, 0))


def test_files_beside_lie_in_the_source_folder(tmp_path: Path, write_image) -> None:
    inside = tmp_path / "set"
    file = write_image(inside / "x.png", 4, 4)
    (inside / "mask.gif").symlink_to(write_image(tmp_path / "y.png", 4, 4))
    record = Record(
        "x", "a", "train", file=file, mask=lambda: np.zeros((4, 4), np.uint8), beside=(inside / "mask.gif",)
    )
    with pytest.raises(Unreadable, match="a link leads out of the source folder"):
        probe(record, os.path.realpath(inside))
