from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.decode import (
    MAX_PIXELS,
    Unreadable,
    decode_stored,
    image_header,
    load_image,
    load_mask,
    read_bytes,
    to_array,
)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def on_disk(folder: Path, data: bytes) -> Path:
    path = folder / "image"
    path.write_bytes(data)
    return path


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], axis=-1).astype(np.uint8)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that promises width x height pixels, followed by almost nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)]
)
def test_modes_become_gray_or_rgb(tmp_path: Path, mode: str, channels: int) -> None:
    image = Image.new("I;16", (5, 4), 1000) if mode == "I;16" else Image.fromarray(smooth(4, 5)).convert(mode)
    data = saved(image)
    header = image_header(on_disk(tmp_path, data))
    assert (header.height, header.width, header.channels) == (4, 5, channels)
    for wanted in (1, 3):
        assert load_image(data, wanted).shape == (4, 5, wanted)


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    deep = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    assert load_image(saved(Image.fromarray(deep)), 1).ravel().tolist() == [0, 0, 1, 255]


def test_exif_orientation_is_applied_and_not_verbatim(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(smooth(8, 16)), "JPEG", exif=exif)
    header = image_header(on_disk(tmp_path, data))
    assert (header.height, header.width, header.verbatim) == (16, 8, False)
    assert load_image(data, 3).shape == (16, 8, 3)


def test_cmyk_jpeg_is_converted() -> None:
    assert load_image(saved(Image.new("CMYK", (6, 5), (0, 0, 0, 0)), "JPEG"), 3).mean() > 250


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Unreadable, match="not a JPEG, PNG or BMP"):
        image_header(on_disk(tmp_path, saved(Image.new("RGB", (3, 3)), kind)))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")  # as in a build
@pytest.mark.parametrize("size", [(13000, 13000), (65500, 1000), (20000, 20000), (2**31 - 1, 1)])
def test_bombs_are_refused_by_their_header(tmp_path: Path, size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(Unreadable, match=r"megapixels|could be decompression bomb|pixels"):
        image_header(on_disk(tmp_path, bomb(*size)))
    with pytest.raises(Unreadable):
        load_image(bomb(*size), 1)


def test_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 100, 200)]
    with pytest.raises(Unreadable, match="animation of 3 frames"):
        image_header(on_disk(tmp_path, saved(frames[0], save_all=True, append_images=frames[1:])))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", bomb(0, 4)])
def test_broken_headers(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Unreadable):
        image_header(on_disk(tmp_path, data))


def test_truncated_files() -> None:
    for kind in ("PNG", "JPEG", "BMP"):
        data = saved(Image.fromarray(smooth(64, 64)), kind)
        with pytest.raises(Unreadable):
            load_image(data[: len(data) // 2], 3)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="plain file"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="plain file"):
        image_header(tmp_path / "pipe")
    with pytest.raises(Unreadable, match="cannot be read"):
        image_header(tmp_path / "absent")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_stored_bytes_decode_as_pillow_does(kind: str, channels: int) -> None:
    image = Image.fromarray(smooth(48, 40))
    data = saved(image, kind, quality=95) if kind == "JPEG" else saved(image)
    expected = to_array(Image.open(io.BytesIO(data)), channels).astype(int)
    array = decode_stored(np.frombuffer(data, np.uint8), 48, 40, channels, None)
    assert array.shape == (48, 40, channels)
    assert np.abs(array.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("least", [(10, 10), (100, 60), (160, 160), (500, 500)])
def test_scaled_decode_never_goes_below_what_is_asked(least: tuple[int, int]) -> None:
    data = saved(Image.fromarray(smooth(320, 240)), "JPEG")
    array = decode_stored(data, 320, 240, 3, least)
    assert array.shape[0] >= min(least[0], 320)
    assert array.shape[1] >= min(least[1], 240)
    assert array.shape[0] * 240 == array.shape[1] * 320
    if least == (10, 10):
        assert array.shape[0] < 320


def test_masks_keep_class_numbers() -> None:
    numbers = np.array([[0, 1], [2, 7]], dtype=np.uint8)
    palette = Image.fromarray(numbers)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [9] * 100)
    for image in (Image.fromarray(numbers), palette):
        assert np.asarray(load_mask(saved(image))).tolist() == numbers.tolist()
