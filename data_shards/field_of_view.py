"""The lit part of a fundus photograph: what a camera shows between black borders.

Region = largest 8-connected component of pixels of which any channel is above 20, its bounding box widened by 16
pixels: how the published preprocessing of Local Discrimination cuts its retinal sets (Chen et al. 2021,
https://arxiv.org/abs/2108.09440).

Legend: H, W height and width of the image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from data_shards.decode import UInt8Array, Unreadable

DARK = 20
MARGIN_PX = 16
Region = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are beyond the last pixel


def fundus_region(image: UInt8Array, min_share: float = 0.0) -> Region:
    """Return the part of an (H, W, C) image that holds its field of view.

    Raises Unreadable for a dark image, and for a component with less than `min_share` of all pixels.
    """
    parts, num_parts = ndimage.label(lit(image), structure=np.ones((3, 3)))
    if num_parts == 0:
        raise Unreadable(f"no field of view: no pixel is above {DARK}")
    sizes = np.bincount(parts.ravel())[1:]
    largest = int(sizes.argmax())
    if sizes[largest] < min_share * parts.size:
        share = sizes[largest] / parts.size
        raise Unreadable(f"the field of view is {share:.0%} of the image, less than {min_share:.0%}")
    rows, columns = ndimage.find_objects(parts, max_label=largest + 1)[largest]
    top, bottom = _widened(rows, parts.shape[0])
    left, right = _widened(columns, parts.shape[1])
    return top, bottom, left, right


def lit(image: UInt8Array) -> npt.NDArray[np.bool_]:
    """Return (H, W): the pixels of an (H, W, C) image of which any channel is above 20."""
    return np.asarray((image > DARK).any(axis=2))


def _widened(span: slice, side: int) -> tuple[int, int]:
    return max(0, span.start - MARGIN_PX), min(side, span.stop + MARGIN_PX)
