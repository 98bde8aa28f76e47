"""An image as the network sees it, given by its file or its sample id, and where its pixels came from.

Legend: S x S pixels of the evaluation image; a box is (left, top, right, bottom) in pixels of the original image, whose
first pixel covers 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.augment import AugmentConfig, Pixels, centre_box
from data_shards.decode import UInt8Array, Unreadable, read_bytes
from data_shards.errors import UserError
from data_shards.evaluation import image_view
from data_shards.fitting import Box, fitted_box
from data_shards.manifest import Manifest
from data_shards.preprocessing import Preprocessing
from data_shards.reader import ShardFolder, SplitReader, open_shards
from data_shards.uploads import Decoder
from launch.config import RunConfig


@dataclass(frozen=True)
class Seen:
    """An image as the network sees it, (S, S, C) uint8, what it is called, and the box of the original that it shows.

    `row` is its place in the split, None for a file.
    """

    pixels: Pixels
    name: str
    box: Box
    row: int | None = None

    def original(self, x: float, y: float) -> tuple[float, float]:
        """Return where the centre of evaluation pixel (x, y) lies in the original, centres counted from 0."""
        left, top, right, bottom = self.box
        side = len(self.pixels)
        return left + (x + 0.5) * (right - left) / side - 0.5, top + (y + 0.5) * (bottom - top) / side - 0.5

    def evaluated(self, x: float, y: float) -> tuple[float, float]:
        """Return the place in the evaluation image of a place in the original: the inverse of `original`."""
        left, top, right, bottom = self.box
        side = len(self.pixels)
        return (x + 0.5 - left) * side / (right - left) - 0.5, (y + 0.5 - top) * side / (bottom - top) - 0.5


def shards_of(config: RunConfig) -> ShardFolder:
    """Return the shards of a run, which say how images are cut to size.

    Raises:
        UserError: they are gone.
    """
    path = Path(config.data.shards)
    if not path.exists():
        raise UserError(f"there are no shards at {path}: they say how images are cut to size")
    return open_shards(path, verify=False)


def preprocessing(manifest: Manifest, transform: AugmentConfig) -> Preprocessing:
    """Return how an image that is not in the shards comes to the network."""
    return Preprocessing(manifest.channels, manifest.image_size, manifest.fit, transform)


def seen(word: str, folder: ShardFolder, split: str, transform: AugmentConfig) -> Seen:
    """Return an image by its sample id (digits) or its file, through the geometry of the shards and of evaluation.

    Raises:
        UserError: no such image, or a file that cannot be decoded.
    """
    if not word.isdecimal():
        return _of_file(Path(word), folder, transform)
    reader = folder.split(split)
    rows = np.flatnonzero(reader.sample_ids == int(word)) if len(word) < 19 else np.empty(0, np.int64)
    if not len(rows):
        raise UserError(f"The {split} split holds no image with the sample id {word}; for a file write ./{word}")
    return of_row(reader, int(rows[0]), transform)


def of_row(reader: SplitReader, row: int, transform: AugmentConfig) -> Seen:
    """Return an image of a split; its original is what the shards hold."""
    image = reader.image(row)
    name = f"{reader.name} {int(reader.sample_ids[row])}"
    return Seen(image_view(image, transform), name, centre_box(transform, *image.shape[:2]), row)


def _of_file(path: Path, folder: ShardFolder, transform: AugmentConfig) -> Seen:
    """Decode an image file in a process of its own, and bring it to the size that the shards have."""
    steps = preprocessing(folder.manifest, transform)
    with Decoder(steps.channels) as decoder:
        return of_image(decoded(decoder, [path])[0], path.name, steps)


def decoded(decoder: Decoder, paths: Sequence[Path]) -> list[UInt8Array]:
    """Return the images of files.

    Raises:
        UserError: one cannot be read or decoded.
    """
    found = []
    for path in paths:
        try:
            (image,) = decoder.decode([read_bytes(path)])
        except Unreadable as reason:
            image = reason
        if isinstance(image, Unreadable):
            raise UserError(f"{path}: {image}")
        found.append(image)
    return found


def of_image(image: UInt8Array, name: str, steps: Preprocessing) -> Seen:
    """Return a decoded (H, W, C) image as it would be seen, had it been in the shards."""
    height, width = image.shape[:2]
    outer: Box = (0.0, 0.0, float(width), float(height))
    if steps.size is not None:
        image, outer = steps.stored(image), fitted_box(width, height, steps.size, steps.fit)
    inner = centre_box(steps.view, *image.shape[:2])
    return Seen(image_view(image, steps.view), name, _inside(outer, inner, image.shape[1], image.shape[0]))


def _inside(outer: Box, inner: Box, width: int, height: int) -> Box:
    """Return in pixels of the original what `inner` is in those of a picture (width, height) that shows `outer`."""
    across, down = (outer[2] - outer[0]) / width, (outer[3] - outer[1]) / height
    return (
        outer[0] + inner[0] * across,
        outer[1] + inner[1] * down,
        outer[0] + inner[2] * across,
        outer[1] + inner[3] * down,
    )
