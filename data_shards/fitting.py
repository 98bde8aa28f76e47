"""Bring an image to the stored size and form.

crop = the largest centred square, pad = the whole image on black, stretch = both sides scaled on their own; all with an
antialiased filter, the crop taken before scaling so that a 65500 x 1 image cannot blow up in between.

Legend: H, W, C height, width, channels (1 or 3) of one image; masks are (H, W).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data_shards.decode import UInt8Array

JPEG_QUALITY = 95
Box = tuple[float, float, float, float]


def fit_image(array: UInt8Array, size: int, fit: str) -> UInt8Array:
    """Return (size, size, C) of an (H, W, C) image."""
    channels = array.shape[2]
    fitted = _fit(Image.fromarray(array[..., 0] if channels == 1 else array), size, fit, Image.Resampling.BICUBIC)
    return np.asarray(fitted, dtype=np.uint8).reshape(size, size, channels)


def fitted_box(width: int, height: int, size: int, fit: str) -> Box:
    """Return the box of the original that `fit_image` shows, in pixels; with "pad" it reaches beyond the image."""
    if fit == "stretch":
        return (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        return _square(width, height)
    inner = _inner(width, height, size)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    across, down = width / inner[0], height / inner[1]
    return (-left * across, -top * down, (size - left) * across, (size - top) * down)


def fit_mask(mask: Image.Image, size: int | None, fit: str, above: float | None = None) -> Image.Image:
    """Return a (size, size) mask with the same geometry as `fit_image` and no invented values.

    With `above` the mask holds shades: scaled bilinearly, they become 255 above that share of 255, and 0. Lines that
    are thinner than a stored pixel survive that, where picking the nearest pixel tears them.
    """
    if size is not None:
        mask = _fit(mask, size, fit, Image.Resampling.NEAREST if above is None else Image.Resampling.BILINEAR)
    if above is None:
        return mask
    return Image.fromarray(np.where(np.asarray(mask) > 255 * above, 255, 0).astype(np.uint8))


def encode_image(array: UInt8Array, stored: str) -> bytes:
    """Return the stored bytes of an (H, W, C) image: raw pixels, JPEG at quality 95 without subsampling, or PNG."""
    if stored == "raw":
        return array.tobytes()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if stored == "jpeg":
        return _saved(image, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return encode_png(image)


def encode_png(image: Image.Image) -> bytes:
    """Return PNG bytes without metadata."""
    return _saved(image, format="PNG", compress_level=6)


def _saved(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def _fit(image: Image.Image, size: int, fit: str, resample: Image.Resampling) -> Image.Image:
    if fit == "pad":
        inner = _inner(*image.size, size)
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(image.resize(inner, resample), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas
    return image.resize((size, size), resample, box=_square(*image.size) if fit == "crop" else None)


def _inner(width: int, height: int, size: int) -> tuple[int, int]:
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _square(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)
