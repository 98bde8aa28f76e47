"""Foreign image files and stored bytes -> uint8 arrays, with limits that are checked before anything is decoded.

An image file is untrusted: a 164 KB PNG can hold 169 megapixels. So the header is read first and held against our own
pixel cap and format list; TIFF is left out on purpose (a large C decoder with a long list of vulnerabilities), but for
the few sources that name their own list of formats (sources/archival.py).

Legend: H, W, C height, width, channels (1 or 3) of one image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

from data_shards.errors import printable
from data_shards.files import open_plain

FORMATS = ("JPEG", "PNG", "BMP")
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 512 << 20
_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_ORIENTATION_TAG = 0x0112

UInt8Array = npt.NDArray[np.uint8]
T = TypeVar("T")


class Unreadable(Exception):
    """An image cannot be used; the text is the reason, as it stands in rejected.csv."""


@dataclass(frozen=True)
class Header:
    """What is known of an image before its pixels are decoded."""

    height: int
    width: int
    channels: int
    num_bytes: int
    verbatim: bool = False  # the file's own bytes can be stored: 8 bit, gray or RGB, upright, JPEG or PNG


def check_size(height: int, width: int) -> None:
    """Raise Unreadable for an empty image or one above the pixel cap."""
    if height < 1 or width < 1:
        raise Unreadable(f"empty image ({width} x {height} pixels)")
    if height * width > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} pixels is above the limit of {MAX_PIXELS // 1_000_000} megapixels")


def check_inside(path: Path, real_root: str) -> None:
    """Raise Unreadable for a file that a link puts outside of the folder `real_root`."""
    if not os.path.realpath(path).startswith(real_root.rstrip(os.sep) + os.sep):
        raise Unreadable("a link leads out of the source folder")


def open_image(path: Path) -> BinaryIO:
    """Open a plain file of sane size; raises Unreadable otherwise (a pipe would block for ever)."""
    try:
        return open_plain(path, MAX_FILE_BYTES, follow=True)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file; raises Unreadable with the reason."""
    with open_image(path) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise Unreadable(f"cannot be read: {error.strerror or error}") from None


def guarded(step: Callable[[], T]) -> T:
    """Run a decoder on foreign bytes: whatever it raises becomes Unreadable with the reason.

    Decoders answer damage with OSError, ValueError, SyntaxError, struct.error, zlib.error, IndexError and others, so
    nothing narrower than Exception is complete.
    """
    try:
        return step()
    except Unreadable:
        raise
    except Exception as error:
        text = printable(" ".join(str(error).split()))[:200]
        raise Unreadable(f"cannot be decoded: {text or type(error).__name__}") from None


def image_header(path: Path) -> Header:
    """Return the header of an image file of an accepted format; raises Unreadable with the reason."""
    with open_image(path) as stream:
        num_bytes = os.fstat(stream.fileno()).st_size
        if num_bytes == 0:
            raise Unreadable("empty file")
        return guarded(lambda: _header_of(_open(stream), num_bytes))


def header_of_bytes(data: bytes, formats: tuple[str, ...] = FORMATS) -> Header:
    """Return the header of an image in memory, of one of `formats`; raises Unreadable with the reason."""
    return guarded(lambda: _header_of(_open(io.BytesIO(data), formats), len(data)))


def load_image(
    data: bytes, channels: int, draft_px: int | None = None, formats: tuple[str, ...] = FORMATS
) -> UInt8Array:
    """Decode a foreign image file to (H, W, channels) uint8, upright; 16-bit gray keeps its high byte.

    With `draft_px` a JPEG may be decoded at a half, quarter or eighth of its size, never below `draft_px` a side.
    """

    def decode() -> UInt8Array:
        image = _open(io.BytesIO(data), formats)
        _header_of(image, len(data))
        if draft_px is not None and image.format == "JPEG":
            image.draft(None, (draft_px, draft_px))
        return to_array(upright(image), channels)

    return guarded(decode)


def load_mask(data: bytes) -> Image.Image:
    """Decode a mask file to a single-channel 8-bit image whose values are class numbers, not shades."""

    def decode() -> Image.Image:
        image = _open(io.BytesIO(data))
        check_size(image.height, image.width)
        image = upright(image)
        return image.convert("L") if image.mode != "P" else Image.fromarray(np.asarray(image))

    return guarded(decode)


def to_array(image: Image.Image, channels: int) -> UInt8Array:
    """Return (H, W, channels) uint8 of an image of any mode; alpha is dropped, 16-bit gray is divided by 256."""
    if image.mode.startswith("I"):
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    array = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return array[..., None] if channels == 1 else array


def decode_stored(data: Any, height: int, width: int, channels: int, min_size: tuple[int, int] | None) -> UInt8Array:
    """Decode the stored PNG or JPEG bytes of one row to (H, W, C) uint8; raises Unreadable.

    Bytes that state another size than the row are not decoded. With `min_size` (height, width) a JPEG may come back
    DCT-scaled, never below it (nor below 1/8).
    """

    def decode() -> UInt8Array:
        stored = bytes(data)
        if stored[:2] == b"\xff\xd8":
            return _decode_jpeg(stored, (height, width), channels, min_size)
        return to_array(_of_size(stored, "PNG", (height, width)), channels)

    return guarded(decode)


def _decode_jpeg(data: bytes, size: tuple[int, int], channels: int, min_size: tuple[int, int] | None) -> UInt8Array:
    low_h, low_w = min_size or (0, 0)
    try:
        _check_stated(simplejpeg.decode_jpeg_header(data)[:2], size)
        color = "RGB" if channels == 3 else "GRAY"
        array: UInt8Array = simplejpeg.decode_jpeg(data, color, min_height=low_h, min_width=low_w, min_factor=1)
        return array
    except ValueError:  # stricter than libjpeg about harmless oddities (extra bytes before a marker)
        return to_array(_of_size(data, "JPEG", size), channels)


def _of_size(data: bytes, kind: str, size: tuple[int, int]) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_stated((image.height, image.width), size)
    return image


def _check_stated(stated: tuple[int, int], size: tuple[int, int]) -> None:
    if stated != size:
        raise Unreadable(f"decodes to {stated[1]} x {stated[0]} instead of {size[1]} x {size[0]} pixels")


def _open(stream: Any, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    try:
        return Image.open(stream, formats=formats)
    except Image.UnidentifiedImageError:
        raise Unreadable(f"not a {', '.join(formats[:-1])} or {formats[-1]} image (told by its content)") from None


def _header_of(image: Image.Image, num_bytes: int) -> Header:
    check_size(image.height, image.width)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format == "PNG":
        raise Unreadable(f"animation of {frames} frames")
    orientation = image.getexif().get(_ORIENTATION_TAG, 1) if image.info.get("exif") else 1
    height, width = (image.width, image.height) if orientation in (5, 6, 7, 8) else (image.height, image.width)
    verbatim = image.format in ("JPEG", "PNG") and image.mode in ("L", "RGB") and orientation == 1
    return Header(height, width, 1 if image.mode in _GRAY_MODES else 3, num_bytes, verbatim)


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its camera says."""
    return ImageOps.exif_transpose(image) if image.info.get("exif") else image
