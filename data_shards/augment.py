"""What happens to each image before it reaches the network: keyed draws, geometry and host-side cropping; numpy only.

Every number is a function of (seed, epoch, view, sample id, visit), drawn for a whole batch in one expression; so an
image is augmented the same way alone, in any batch, on any rank and after any restart. The pixels are changed in
`augment_batch` (torch, whole batches, on any device); only crops and resizes of images that are not stored in their
final size happen here, one image at a time, with Pillow's antialiased filter.

Geometry is a (3, 3) matrix from output to source coordinates (x, y, 1); coordinates run from -1 to 1 over the outer
edges of the image (x right, y down), as in torch's grid_sample with align_corners=False.

Legend: B images, H x W pixels, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_shards import keyed
from data_shards.errors import UserError

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Pair = tuple[float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_VISIT_SHIFT = 44  # sample ids below 2**44, visits below 2**19: one key each


@dataclass(frozen=True)
class AugmentConfig:
    """Size, normalisation and augmentation of images; everything random is off by default.

    size: pixels of a side of the square output. channels: 1 or 3 (stored gray images are repeated to 3).
    resize: evaluation resizes the shorter side to this before the centre crop; None = size * 256/224 for images at
    least that large, else size. crop_scale, crop_ratio: area and aspect ratio of the random crop, (1, 1) = none.
    hflip, vflip, rotate90: each outcome equally likely. rotate_degrees, shear: largest angle. translate: largest
    shift as a fraction of the size. scale: zoom from the smaller to the larger factor, log-uniform. padding: what
    lies outside. brightness, contrast, saturation: largest relative change; hue: largest turn (0.5 = all hues).
    gray: probability that colour goes. erase: probability of a random rectangle of erase_area set to the mean colour.
    mean, std: of the 0..1 intensities, per channel; None = ImageNet for 3 channels, 0.5 for 1. own: what each of
    several views of an image gets by itself: small motions, colours, erasing; crop, flips, turns and motions of this
    configuration are then shared by the views, and its colours and erasing not used. None: views share nothing.
    """

    size: int
    channels: int = 3
    resize: int | None = None
    crop_scale: Pair = (1.0, 1.0)
    crop_ratio: Pair = (3 / 4, 4 / 3)
    hflip: bool = False
    vflip: bool = False
    rotate90: bool = False
    rotate_degrees: float = 0.0
    translate: float = 0.0
    scale: Pair = (1.0, 1.0)
    shear: float = 0.0
    padding: Literal["reflection", "border", "zeros"] = "reflection"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    gray: float = 0.0
    erase: float = 0.0
    erase_area: Pair = (0.02, 0.2)
    own: AugmentConfig | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Raise UserError for values outside their meaning."""
        for name in ("crop_scale", "crop_ratio", "scale", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name in ("crop_scale", "erase_area") and high > 1):
                raise UserError(f"augment.{name} = ({low}, {high}): use 0 < low <= high (areas are at most 1)")
        for name, most in _LARGEST.items():
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"augment.{name} = {getattr(self, name)}: use a number from 0 to {most}")
        if self.size < 1 or self.channels not in (1, 3) or (self.resize or self.size) < self.size:
            raise UserError(
                f"augment: size {self.size}, {self.channels} channels, resize {self.resize}: use a size of at least 1, "
                "1 or 3 channels, and a resize of at least the size"
            )
        if self.padding not in ("reflection", "border", "zeros"):
            raise UserError(f"augment.padding = '{self.padding}': use reflection, border or zeros")
        if any(len(x) not in (1, self.channels) for x in self.normalisation) or min(self.normalisation[1]) <= 0:
            raise UserError(f"augment.mean and augment.std need {self.channels} numbers, and std above 0")
        if self.own is not None and (self.own.crops or self.own.hflip or self.own.vflip or self.own.rotate90):
            raise UserError("augment.own: crops, flips and quarter turns are shared by the views of an image")

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel."""
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if self.channels == 3 else ((0.5,), (0.5,))
        return tuple(self.mean or mean), tuple(self.std or std)

    @property
    def crops(self) -> bool:
        """Whether training takes a random crop of every image."""
        return tuple(self.crop_scale) != (1, 1)

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated (flips and quarter turns alone only move them)."""
        moves = bool(self.rotate_degrees or self.translate or self.shear or tuple(self.scale) != (1, 1))
        return moves or (self.own is not None and self.own.warps)

    @property
    def of_view(self) -> AugmentConfig:
        """The configuration whose colours and erasing a view gets."""
        return self.own or self

    @property
    def recolours(self) -> bool:
        """Whether intensities or colours change."""
        return bool(self.brightness or self.contrast or self.mixes_colours)

    @property
    def mixes_colours(self) -> bool:
        """Whether channels are mixed."""
        return bool(self.saturation or self.hue or self.gray)


_LARGEST = {
    "rotate_degrees": 180, "translate": 1, "shear": 60, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0.5,
    "gray": 1, "erase": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Parameters:
    """The draws of B images; every field has one row per image."""

    hflip: npt.NDArray[np.bool_]  # (B,)
    vflip: npt.NDArray[np.bool_]  # (B,)
    turns: npt.NDArray[np.int64]  # (B,) quarter turns
    warp: Floats  # (B, 3, 3) output -> image after cropping, flips and turns included
    crop: Floats  # (B, 4) area, log aspect ratio, position in x and y (0..1)
    colour: Floats  # (B, 4) factors of brightness, contrast, saturation; turn of the hue in radians
    erase: Floats  # (B, 4) left, top, right, bottom in 0..1; all 0 where nothing is erased

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Parameters:
        """Return the draws of some of the images."""
        return Parameters(*(getattr(self, f.name)[rows] for f in fields(self)))

    def seen_by(self, own: Parameters) -> Parameters:
        """Return the draws of a view that shares crop, flips, turns and motions with others; the rest is its own."""
        return replace(self, warp=self.warp @ own.warp, colour=own.colour, erase=own.erase)


def draw(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    sample_ids: npt.NDArray[np.int64],
    view: int = 0,
    visits: npt.NDArray[np.int64] | None = None,
) -> Parameters:
    """Return the draws of the images (B,), each from its own key; visits: (B,) earlier visits in this epoch."""
    ids = np.asarray(sample_ids, dtype=np.int64)
    if visits is not None:
        ids = ids + (np.asarray(visits, dtype=np.int64) << _VISIT_SHIFT)
    # A column belongs to one purpose for ever: switching one option on leaves the draws of the others alone.
    u = keyed.uniform(keyed.fold(keyed.key(seed, "augment", epoch, view), ids), 21)
    signed = 2 * u - 1
    hflip, vflip = config.hflip & (u[:, 0] < 0.5), config.vflip & (u[:, 1] < 0.5)
    turns = (4 * u[:, 2]).astype(np.int64) * config.rotate90
    log_ratio = _between(np.log(config.crop_ratio), u[:, 9])
    strength = np.array([config.brightness, config.contrast, config.saturation, 2 * np.pi * config.hue])
    colour = np.array([1.0, 1.0, 1.0, 0.0]) + strength * signed[:, 12:16]
    colour[u[:, 20] < config.gray, 2] = 0.0
    return Parameters(
        hflip=hflip,
        vflip=vflip,
        turns=turns,
        warp=_flipped(hflip, vflip) @ _turned(turns) @ _warp(config, signed, u),
        crop=np.stack([_between(np.array(config.crop_scale), u[:, 8]), log_ratio, u[:, 10], u[:, 11]], axis=1),
        colour=colour,
        erase=_erased(config, u[:, 16:20]),
    )


def draw_views(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    sample_ids: npt.NDArray[np.int64],
    views: int = 1,
    visits: npt.NDArray[np.int64] | None = None,
) -> Parameters:
    """Return the draws of V views of every image, (B * V) rows, the views of an image next to each other."""
    if config.own is None:
        drawn = [draw(config, seed, epoch, sample_ids, view, visits) for view in range(views)]
    else:
        shared = draw(config, seed, epoch, sample_ids, 0, visits)
        own = (draw(config.own, seed, epoch, sample_ids, 1 + view, visits) for view in range(views))
        drawn = [shared.seen_by(each) for each in own]
    columns = (np.stack([getattr(d, f.name) for d in drawn], axis=1) for f in fields(Parameters))
    return Parameters(*(c.reshape(-1, *c.shape[2:]) for c in columns))


def _between(bounds: npt.NDArray[np.floating], u: Floats) -> Floats:
    return np.asarray(bounds[0] + (bounds[1] - bounds[0]) * u, dtype=np.float64)


def _matrices(*entries: Floats | float) -> Floats:
    """Return (B, 3, 3) from the six entries of the first two rows."""
    size = np.broadcast_shapes(*(np.shape(e) for e in entries))
    out = np.zeros((*size, 3, 3))
    for i, entry in enumerate(entries):
        out[..., i // 3, i % 3] = entry
    out[..., 2, 2] = 1
    return out


def _flipped(hflip: npt.NDArray[np.bool_], vflip: npt.NDArray[np.bool_]) -> Floats:
    return _matrices(np.where(hflip, -1.0, 1.0), 0, 0, 0, np.where(vflip, -1.0, 1.0), 0)


def _turned(turns: npt.NDArray[np.int64]) -> Floats:
    """Return matrices of counter-clockwise quarter turns (numpy.rot90), entries exactly 0 and +-1."""
    cos, sin = np.array([1.0, 0.0, -1.0, 0.0])[turns], np.array([0.0, 1.0, 0.0, -1.0])[turns]
    return _matrices(cos, -sin, 0, sin, cos, 0)


def _warp(config: AugmentConfig, signed: Floats, u: Floats) -> Floats:
    """Return (B, 3, 3) of rotation, zoom, shear and shift, from output to source."""
    angle = np.deg2rad(config.rotate_degrees) * signed[:, 3]
    zoom = np.exp(-_between(np.log(config.scale), u[:, 4]))
    slant = np.tan(np.deg2rad(config.shear) * signed[:, 5])
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    shift_x, shift_y = 2 * config.translate * signed[:, 6], 2 * config.translate * signed[:, 7]
    return _matrices(cos, cos * slant - sin, -shift_x, sin, sin * slant + cos, -shift_y)


def _erased(config: AugmentConfig, u: Floats) -> Floats:
    side = np.sqrt(_between(np.array(config.erase_area), u[:, 1]))[:, None]
    corner = u[:, 2:4] * (1 - side)
    boxes = np.concatenate([corner, corner + side], axis=1)
    return np.where(u[:, :1] < config.erase, boxes, 0.0)


def crop_box(crop: Floats, height: int, width: int) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) in pixels of the random crop of one image, from its row of `Parameters.crop`.

    An aspect ratio that does not fit the image is cut to the image (torchvision draws again).
    """
    area, ratio = crop[0] * height * width, math.exp(crop[1])
    box_width, box_height = min(math.sqrt(area * ratio), width), min(math.sqrt(area / ratio), height)
    left, top = crop[2] * (width - box_width), crop[3] * (height - box_height)
    return left, top, left + box_width, top + box_height


def crop_boxes(crops: Floats, height: int, width: int) -> Floats:
    """Return the boxes (B, 4) of `crop_box` for crops (B, 4) of images of one size."""
    ratios = np.array([math.exp(each) for each in crops[:, 1]])  # numpy's exp may differ in the last bit
    areas = crops[:, 0] * height * width
    widths, heights = np.minimum(np.sqrt(areas * ratios), width), np.minimum(np.sqrt(areas / ratios), height)
    lefts, tops = crops[:, 2] * (width - widths), crops[:, 3] * (height - heights)
    return np.stack([lefts, tops, lefts + widths, tops + heights], axis=1)


def centre_box(config: AugmentConfig, height: int, width: int) -> tuple[float, float, float, float]:
    """Return the box that "shorter side to `resize`, then centre crop to `size`" would keep, in pixels."""
    shorter, usual = min(height, width), round(config.size * 256 / 224)
    resize = config.resize or (usual if shorter >= usual else config.size)
    side = shorter * config.size / resize
    if resize == shorter:  # no resampling: stay on whole pixels
        left, top = float((width - config.size) // 2), float((height - config.size) // 2)
    else:
        left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def resized(image: Pixels, box: tuple[float, float, float, float], size: int) -> Pixels:
    """Return the part of an image (H, W, C) inside the box as (size, size, C): bilinear, antialiased (Pillow)."""
    plane = image[:, :, 0] if image.shape[2] == 1 else image
    out = Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(out).reshape(size, size, image.shape[2])


def box_matrix(box: tuple[float, float, float, float] | Floats, height: int, width: int) -> Floats:
    """Return (3, 3) from coordinates in the box to coordinates in the image of H x W pixels; (B, 3, 3) of (B, 4)."""
    left, top, right, bottom = np.moveaxis(np.asarray(box), -1, 0)
    return _matrices(
        (right - left) / width, 0, (left + right) / width - 1, 0, (bottom - top) / height, (top + bottom) / height - 1
    )


def smallest_decode(config: AugmentConfig, crop: Floats | None) -> tuple[int, int]:
    """Return (height, width) below which decoding would cost detail: of one training crop, or of evaluation (None)."""
    if crop is None:
        side = config.resize or math.ceil(config.size * 256 / 224)
    else:
        tighter = math.exp(-abs(crop[1]))  # the narrower side of the crop is sqrt(area * ratio) or sqrt(area / ratio)
        side = math.ceil(config.size / math.sqrt(crop[0] * tighter))
    return side, side
