"""One whole-slide image: where its tissue is, and its patches at a physical size. Call these in a sandbox.

Tissue is told by colour, not by brightness: stain is coloured, while glass, dust and the shading of the lamp are grey,
however bright. The saturation of a thumbnail is cut by Otsu's threshold, which needs no constant of a scanner or a
stain; a floor keeps the noise of a slide without stain from being parted into two. Nearly black pixels (padding, pen)
have no colour worth the name and count as background. On a slide that is tissue from edge to edge Otsu's threshold
falls within the tissue; a lower `tissue` fraction keeps its paler part.

A patch is read from the coarsest level of the pyramid that is still finer than wanted, and resampled from there. Where
a slide has no pixels (OpenSlide answers with transparent ones) it is white, like glass.

Legend: G_y x G_x places of the grid, N patches that are kept; m pixels of the thumbnail along a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_shards.decode import UInt8Array, Unreadable, check_size, to_array
from data_shards.errors import UserError
from data_shards.files import open_plain
from data_shards.fitting import fit_image
from data_shards.otsu import otsu
from data_shards.sandbox import Reply
from data_shards.sources.slides import PLAUSIBLE_MPP

if TYPE_CHECKING:
    from openslide import OpenSlide

MAX_FILE_BYTES = 1 << 44
MAX_PLACES = 1 << 18
_MASK_PX = 16
_LEAST_SATURATION, _BLACK = 13, 25  # of 255
_ROUNDED = 1.01  # a level that is a quarter may say 4.0003
Bools = npt.NDArray[np.bool_]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Cut:
    """Patches of `microns` a side, stored at `pixels`, of which the fraction `tissue` or more is tissue."""

    microns: float
    pixels: int
    tissue: float

    def __post_init__(self) -> None:
        """Raise UserError for numbers that make no patch."""
        if not 1 <= self.microns <= 100_000:
            raise UserError(f"microns={self.microns:g} is out of range; use the side of a patch, 1 to 100000.")
        if not 16 <= self.pixels <= 8000:
            raise UserError(f"patches of {self.pixels} pixels are out of range; use a size of 16 to 8000.")
        if not 0 <= self.tissue <= 1:
            raise UserError(f"tissue={self.tissue} is not a fraction from 0 to 1.")


def find_patches(file: Path, mpp: float | None, cut: Cut) -> Reply:
    """Return {mpp, native_px} and (N, 2) int64 x and y, in pixels of the finest level, of the patches with tissue.

    `mpp` overrides the slide's microns per pixel; facts are {stated} alone, as text, when there are none to go by.
    """
    slide = open_slide(file)
    scale = (mpp, mpp) if mpp else _stated(slide)
    if scale is None:
        return {"stated": str(slide.properties.get("openslide.mpp-x", ""))[:40]}, b""
    step = (cut.microns / scale[0], cut.microns / scale[1])
    columns, rows = (int(side // pixels) for side, pixels in zip(slide.dimensions, step, strict=True))
    if columns * rows > MAX_PLACES:
        raise Unreadable(f"{columns} x {rows} patches are above the limit of {MAX_PLACES:,}; use more microns")
    facts = {"mpp": scale, "native_px": min(step)}
    if columns * rows == 0:
        return facts, b""
    mask = tissue_mask(_thumbnail(slide, columns, rows, step))
    shares = mask.reshape(rows, _MASK_PX, columns, _MASK_PX).mean(axis=(1, 3))
    places = np.argwhere(shares >= cut.tissue)[:, ::-1]
    return facts, np.rint(places * np.array(step)).astype(np.int64).tobytes()


def tissue_mask(thumbnail: Image.Image) -> Bools:
    """Return (H, W), True where an RGB image shows tissue."""
    _, saturation, value = (np.asarray(band) for band in thumbnail.convert("HSV").split())
    threshold = max(otsu(saturation), _LEAST_SATURATION)
    return np.asarray((saturation > threshold) & (value > _BLACK))


def load_patch(file: Path, place: tuple[int, int], mpp: Pair, cut: Cut, channels: int) -> UInt8Array:
    """Return (pixels, pixels, channels) of the patch with its upper left corner at `place`; raises Unreadable."""
    slide = open_slide(file)
    wanted = cut.microns / cut.pixels / max(mpp)
    level = slide.get_best_level_for_downsample(wanted * _ROUNDED)
    step = (cut.microns / mpp[0], cut.microns / mpp[1])
    array = to_array(_region(slide, place, level, step), channels)
    return fit_image(array, cut.pixels, "stretch")


@lru_cache(maxsize=1)
def open_slide(file: Path) -> OpenSlide:
    """Return the open slide, kept for its next patch; raises Unreadable."""
    import openslide

    try:
        open_plain(file, MAX_FILE_BYTES, follow=True).close()  # a pipe would be waited for
        return openslide.OpenSlide(file)
    except (OSError, openslide.OpenSlideError) as error:
        text = str(error).replace(str(file), "").strip(" :") or "not a slide of a known format"
        raise Unreadable(f"cannot be opened as a slide: {text[:120]}") from None


def _stated(slide: OpenSlide) -> Pair | None:
    try:
        x, y = (float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
    except (KeyError, ValueError):
        return None
    low, high = PLAUSIBLE_MPP
    return (x, y) if low <= x <= high and low <= y <= high else None


def _thumbnail(slide: OpenSlide, columns: int, rows: int, step: Pair) -> Image.Image:
    """Return the whole grid at m pixels a patch, read one row of patches at a time."""
    level = slide.get_best_level_for_downsample(min(step) / _MASK_PX)
    whole = Image.new("RGB", (columns * _MASK_PX, rows * _MASK_PX))
    for row in range(rows):
        strip = _region(slide, (0, round(row * step[1])), level, (columns * step[0], step[1]))
        whole.paste(strip.resize((whole.width, _MASK_PX), Image.Resampling.BOX), (0, row * _MASK_PX))
    return whole


def _region(slide: OpenSlide, place: tuple[int, int], level: int, extent: Pair) -> Image.Image:
    """Return the RGB image at `place` that extends over `extent` pixels of the finest level; raises Unreadable."""
    shrink = slide.level_downsamples[level]
    size = (max(1, round(extent[0] / shrink)), max(1, round(extent[1] / shrink)))
    check_size(size[1], size[0])
    try:
        region = slide.read_region(place, level, size)
    except Exception:
        open_slide.cache_clear()  # after one error OpenSlide answers every call with it
        raise
    return Image.alpha_composite(Image.new("RGBA", size, "white"), region).convert("RGB")
