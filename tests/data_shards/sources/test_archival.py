from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.decode import Unreadable
from data_shards.sources import archival
from tests.data_shards.sources.eyes import drawn, eye, save


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.tif", {}),
        ("x.tif", {"compression": "tiff_lzw"}),
        ("x.tif", {"compression": "packbits"}),
        ("x.ppm", {}),
        ("x.ppm.gz", {}),
        ("x.png", {}),
        ("X.BMP", {}),
    ],
)
def test_formats_without_loss(tmp_path: Path, name: str, options: dict) -> None:
    file = save(tmp_path / name, eye(1), **options)
    header = archival.header(file)
    assert (header.height, header.width, header.channels, header.verbatim) == (60, 90, 3, name == "x.png")
    assert np.array_equal(archival.pixels(file, 3), eye(1))
    assert archival.pixels(file, 1).shape == (60, 90, 1)


def palette(mask: np.ndarray, black: int) -> Image.Image:
    """Return a picture of palette colours: red on black, black being number `black`."""
    image = Image.fromarray(np.where(mask, 1 - black, black).astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0] if black == 0 else [255, 0, 0, 0, 0, 0])
    return image


def test_painted_is_what_is_not_black(tmp_path: Path) -> None:
    mask = drawn(3)
    forms = {
        "gray.gif": Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)),
        "faint.tif": Image.fromarray(np.where(mask, 1, 0).astype(np.uint8)),
        "bits.png": Image.fromarray(mask),
        "red.tif": palette(mask, 0),
        "turned.gif": palette(mask, 1),
        "alpha.tif": Image.fromarray(
            np.stack([np.where(mask, 76, 0)] * 3 + [np.full(mask.shape, 255)], 2).astype("u1")
        ),
    }
    for name, image in forms.items():
        image.save(tmp_path / name)
        assert np.array_equal(archival.painted(tmp_path / name), np.where(mask, 255, 0)), name
    save(tmp_path / "other.png", np.where(drawn(9), 255, 0).astype(np.uint8))
    both = archival.painted(tmp_path / "gray.gif", tmp_path / "other.png")
    assert np.array_equal(both > 0, mask | drawn(9))


def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archival, "_MAX_UNPACKED", 1 << 20)
    whole = save(tmp_path / "x.ppm", eye(0)).read_bytes()
    packed = gzip.compress(whole)
    for name, content, reason in (
        ("cut.ppm.gz", packed[:-20], "cut short"),
        ("not.ppm.gz", whole, "not a gzip file"),
        ("bomb.ppm.gz", gzip.compress(b"P6 9 9 255\n" + bytes(2 << 20)), "more than 1 MiB"),
        ("cut.ppm", whole[:500], "cannot be decoded"),
        ("text.tif", b"nothing", "not a JPEG, PNG, BMP, TIFF, GIF or PPM image"),
        ("large.ppm", b"P6\n9000 9000\n255\n" + bytes(20), "above the limit of 64 megapixels"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable, match=reason):
            archival.pixels(tmp_path / name, 3)
    save(tmp_path / "small.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(Unreadable, match="differ in size"):
        archival.painted(tmp_path / "small.png", save(tmp_path / "y.png", eye(0)))
