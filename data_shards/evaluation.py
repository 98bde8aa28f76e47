"""What evaluation sees of an image and of its mask: the shorter side resized, the centre cropped, for both alike.

Legend: N images, H x W pixels stored, C channels, S x S pixels seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_shards.augment import AugmentConfig, Pixels, centre_box, resized
from data_shards.errors import UserError

Bools = npt.NDArray[np.bool_]


class MaskReader(Protocol):
    """What is used of `reader.SplitReader`."""

    def mask(self, row: int) -> Pixels | None: ...


def with_channels(image: Pixels, config: AugmentConfig) -> Pixels:
    """Return the image with C channels, so that gray and colour images can share a batch."""
    if image.shape[2] == 3 and config.channels == 1:
        raise UserError("an image has 3 channels, but augment.channels is 1: set it to 3 or build gray shards")
    return np.repeat(image, config.channels, axis=2) if image.shape[2] < config.channels else image


def image_view(image: Pixels, config: AugmentConfig) -> Pixels:
    """Return (S, S, C) uint8 of an (H, W, C) image; raises UserError for a colour image where gray ones are wanted."""
    image = with_channels(image, config)
    return resized(image, centre_box(config, *image.shape[:2]), config.size)


def mask_view(mask: Pixels, config: AugmentConfig) -> Bools:
    """Return (S, S) bool of an (H, W) mask: a pixel is foreground if half of what it covers is not 0.

    The filter is that of `image_view`, so that mask and image lie on each other to a fraction of a pixel.
    """
    inside = np.where(mask > 0, np.uint8(255), np.uint8(0))[..., None]
    return np.asarray(resized(inside, centre_box(config, *mask.shape), config.size)[..., 0] >= 128)


def mask_views(reader: MaskReader, rows: Sequence[int] | npt.NDArray[np.int64], config: AugmentConfig) -> Bools:
    """Return (N, S, S) bool of rows that have a mask; raises UserError for one that has none."""
    out = np.empty((len(rows), config.size, config.size), dtype=np.bool_)
    for i, row in enumerate(rows):
        mask = reader.mask(int(row))
        if mask is None:
            raise UserError(f"row {int(row)} has no mask")
        out[i] = mask_view(mask, config)
    return out
