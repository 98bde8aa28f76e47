"""Images of a split as small pictures, from the shards the run was trained on, seen as the evaluation saw them.

Legend: N evaluated images, h x w attention map; pictures are square, `side` pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

from data_shards.errors import UserError
from data_shards.reader import CorruptImage, SplitReader, open_shards
from launch.report import theme
from launch.report.collect import Run

SIDE = 144  # twice the widest place a picture takes on the page, for screens with dense pixels
_TINY = 48  # below this a picture stays as it is (PNG) and the browser enlarges its pixels


class Thumbnails:
    """Pictures by sample id."""

    def __init__(self, reader: SplitReader, view_fraction: float = 1.0) -> None:
        """Show the centre `view_fraction` of the shorter side: what the evaluation transform leaves of an image."""
        self._reader = reader
        self._rows = {int(sample): row for row, sample in enumerate(reader.sample_ids)}
        self._fraction = view_fraction

    def picture(self, sample_id: int) -> Image.Image | None:
        """Return the RGB picture of an image, None when the shards do not hold it, or not intact."""
        row = self._rows.get(int(sample_id))
        if row is None:
            return None
        try:
            array = self._reader.image(row, min_size=(2 * SIDE, 2 * SIDE))
        except CorruptImage:
            return None
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
        side = max(1.0, min(image.size) * self._fraction)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        target = max(1, min(SIDE, round(side)))
        return image.resize((target, target), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))

    @property
    def tiny(self) -> bool:
        """Whether the images are so small that a reader should see their pixels."""
        shape = self._reader.uniform_shape()
        return shape is not None and max(shape[:2]) <= 32

    def uri(self, sample_id: int) -> str | None:
        """Return the picture as a data: address."""
        picture = self.picture(sample_id)
        return None if picture is None else encoded(picture)

    def overlay_uri(self, sample_id: int, attention: np.ndarray) -> str | None:
        """Return the picture under its (h, w) attention map as a data: address."""
        picture = self.picture(sample_id)
        return None if picture is None else encoded(overlay(picture, attention))


def encoded(picture: Image.Image) -> str:
    """Return a data: address."""
    return theme.data_uri(*compressed(picture))


def compressed(picture: Image.Image) -> tuple[bytes, str]:
    """Return bytes and their kind: tiny pictures as "png", without loss, others as "jpeg", a tenth of the size."""
    stream = io.BytesIO()
    if min(picture.size) <= _TINY:
        picture.save(stream, format="PNG", optimize=True)
        return stream.getvalue(), "png"
    picture.save(stream, format="JPEG", quality=88)
    return stream.getvalue(), "jpeg"


def overlay(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """Lay an (h, w) map over a picture: scaled to its own range, smooth, the more attention the less transparent."""
    values = np.nan_to_num(attention.astype(np.float32))
    values = (values - values.min()) / max(float(values.max() - values.min()), 1e-6)
    side = max(picture.width, 96)
    heat = Image.fromarray(values, mode="F").resize((side, side), Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(heat), 0, 1)[..., None]
    colour = mpl.colormaps["inferno"](strength[..., 0])[..., :3] * 255
    base = np.asarray(picture.resize((side, side), Image.Resampling.NEAREST), dtype=np.float32)
    alpha = 0.15 + 0.6 * strength
    return Image.fromarray((base * (1 - alpha) + colour * alpha).round().astype(np.uint8))


def open_thumbnails(run: Run, split: str) -> tuple[Thumbnails | None, str]:
    """Return the pictures of a split, or None and the reason in a sentence.

    Checksums of whole shards are not recomputed: a picture is not worth reading a terabyte.
    """
    data = run.config.get("data") or {}
    folder = data.get("shards")
    found = shards_near(run.path, folder) if folder else None
    if found is None:
        return None, f"Pictures are left out: the shard folder {folder or '(not named in config.yaml)'} is not here."
    try:
        return Thumbnails(open_shards(found, verify=False).split(split), view_fraction(run, found)), ""
    except UserError as error:
        return None, f"Pictures are left out: {error}"


def shards_near(run: Path, folder: str) -> Path | None:
    """Return where the shards that a run names are, None when they are not here."""
    return next((found for found in _candidates(run, folder) if (found / "manifest.json").exists()), None)


def _candidates(run: Path, folder: str) -> list[Path]:
    """The path as the run saw it; then beside the run, when both were moved to another machine together."""
    path = Path(folder)
    return [path] if path.is_absolute() else [path, *(parent / path for parent in run.resolve().parents)]


def view_fraction(run: Run, shards: Path) -> float:
    """Return the share of the shorter side that evaluation keeps: 224/256 of images stored larger than needed."""
    data = run.config.get("data") or {}
    size, resize = data.get("image_size"), data.get("resize")
    stored = open_shards(shards, verify=False).manifest.image_size
    if not isinstance(size, int):
        return 1.0
    if isinstance(resize, int) and resize > 0:
        return min(1.0, size / resize)
    return 1.0 if stored is not None and stored <= size else 224 / 256
