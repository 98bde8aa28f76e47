"""Files in memory are decoded as they are from the disk, and bad ones cost a sentence."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from data_shards.build import build
from data_shards.decode import Unreadable
from data_shards.reader import open_shards
from data_shards.uploads import Decoder
from tests.data_shards.sources.test_dicom import write_dicom


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def test_images_and_bad_ones_by_one_process() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    before = {child.pid for child in psutil.Process().children()}
    open_files = len(os.listdir("/proc/self/fd"))
    with Decoder(1) as decoder:
        (process,) = {child.pid for child in psutil.Process().children()} - before
        bad = [b"", b"GIF89a" + bytes(40), png(pixels)[:60], bytes(128) + b"DICM" + bytes(40)]
        found = decoder.decode([png(pixels), *bad, png(pixels)])
        assert np.array_equal(found[0], pixels[..., None])
        assert np.array_equal(found[-1], pixels[..., None])
        assert all(isinstance(answer, Unreadable) and str(answer) for answer in found[1:-1])
        assert {child.pid for child in psutil.Process().children()} - before == {process}
    assert not psutil.pid_exists(process)
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_dicom_is_decoded_as_a_shard_build_does(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint16).reshape(6, 8)
    path = write_dicom(tmp_path / "set" / "class" / "a.dcm", pixels, WindowCenter=24, WindowWidth=48)
    build(f"dicom:{tmp_path / 'set'}", tmp_path / "shards", options={"validation": 0, "test": 0})
    with Decoder(1) as decoder:
        (found,) = decoder.decode([path.read_bytes()])
    assert np.array_equal(found, open_shards(tmp_path / "shards").split("train").image(0))


def test_gray_becomes_colour_where_colour_is_wanted() -> None:
    with Decoder(3) as decoder:
        (found,) = decoder.decode([png(np.full((4, 4), 9, np.uint8))])
    assert found.shape == (4, 4, 3)
