"""Image files as older data sets ship them: TIFF, GIF and PPM beside the usual formats, also packed by gzip.

Their decoders are read-only corners of Pillow with a long history of defects, so that no other source accepts them
(docs/decisions.md). All functions here are called in the sandbox only (sandbox.py). Of a file with many pages or
frames the first is read.

Legend: H, W, C height, width, channels (1 or 3) of an image.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from data_shards.decode import FORMATS, MAX_PIXELS, Header, UInt8Array, Unreadable, load_image, read_bytes
from data_shards.decode import header_of_bytes as _header

ARCHIVAL = (*FORMATS, "TIFF", "GIF", "PPM")
SUFFIXES = {".tif", ".tiff", ".gif", ".ppm", ".png", ".jpg", ".jpeg", ".bmp", ".gz"}
_MAX_UNPACKED = 3 * MAX_PIXELS + 4096
_GZIP = 16 + zlib.MAX_WBITS


def header(file: Path) -> Header:
    """Return the header of an image file; raises Unreadable."""
    return _header(_content(file), ARCHIVAL)


def pixels(file: Path, channels: int) -> UInt8Array:
    """Return (H, W, channels) uint8; raises Unreadable."""
    return load_image(_content(file), channels, formats=ARCHIVAL)


def painted(*files: Path) -> UInt8Array:
    """Return (H, W) uint8, 255 where any of the files is not black, whatever its palette; raises Unreadable."""
    masks = [pixels(file, 3).max(axis=2) > 0 for file in files]
    if len({mask.shape for mask in masks}) > 1:
        raise Unreadable("the masks of one image differ in size")
    return np.where(np.any(masks, axis=0), 255, 0).astype(np.uint8)


def shades(file: Path) -> UInt8Array:
    """Return (H, W) uint8, the gray levels of a file; raises Unreadable."""
    return pixels(file, 1)[..., 0]


def _content(file: Path) -> bytes:
    data = read_bytes(file)
    if file.suffix.lower() != ".gz":
        return data
    unpacker = zlib.decompressobj(_GZIP)
    try:
        content = unpacker.decompress(data, _MAX_UNPACKED)
    except zlib.error:
        raise Unreadable("not a gzip file, or a damaged one") from None
    if not unpacker.eof:
        raise Unreadable(f"the gzip file is cut short, or holds more than {_MAX_UNPACKED >> 20} MiB")
    return content
