"""vessels - drawn fundus photographs: dark vessels on a shaded disc, for trying out what needs real retinas.

Every sample is a pure function of (seed, sample id). The anatomy is that of a right eye and the same in all: an optic
disc, from which four pairs of vessels arch around a fovea; small branches, colours, light and noise vary, and so does
the pose (turn, zoom, shift) behind a round aperture that stays. The mask is that of the vessels. The centres of disc
and fovea are known exactly and stored as factors, in pixels of the image: landmark0_x, landmark0_y (disc), landmark1_x,
landmark1_y (fovea), from 0 at the centre of the first pixel; so images are stored at the size they are drawn at.

Legend: P side of the drawing in pixels; anatomical places are (x, y) in radii of the aperture from its centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from data_shards.decode import Header, UInt8Array, to_array
from data_shards.errors import UserError
from data_shards.keyed import generator
from data_shards.shapes import Branches, FloatArray, grow, rasterise, rotation
from data_shards.sources.listing import Listing, Record
from data_shards.sources.splits import assign

CLASS = "fundus"
FACTORS = ("landmark0_x", "landmark0_y", "landmark1_x", "landmark1_y")
DEFAULT_SIZE = 256
DISC, FOVEA = (0.48, -0.03), (-0.06, 0.04)
_RADIUS = 0.48  # of the aperture, in sides of the image
_DISC_RADIUS, _FOVEA_RADIUS = 0.13, 0.16
# headings from the disc (degrees, y points down), bend along the way, length and width of the main vessels
_ARCADES = np.array(
    [
        [-112.0, -95.0, 1.35, 0.042],
        [-104.0, -80.0, 1.25, 0.032],
        [112.0, 95.0, 1.35, 0.042],
        [104.0, 80.0, 1.25, 0.032],
        [-60.0, 25.0, 0.75, 0.030],
        [-42.0, 15.0, 0.70, 0.024],
        [60.0, -25.0, 0.75, 0.030],
        [42.0, -15.0, 0.70, 0.024],
    ]
)
_POINTS = 24


@dataclass(frozen=True)
class Pose:
    """How the eye stands behind the aperture: `turn` in radians, `zoom`, `shift` in radii of the aperture."""

    turn: float
    zoom: float
    shift: tuple[float, float]

    def places(self, anatomy: FloatArray) -> FloatArray:
        """Return (..., 2) places in sides of the image of (..., 2) anatomical ones."""
        return 0.5 + _RADIUS * (self.zoom * anatomy @ rotation(self.turn) + np.asarray(self.shift))


def read(
    path: Path | None = None,
    *,
    num_samples: int = 200,
    pixels: int = DEFAULT_SIZE,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Listing:
    """List the drawings; raises UserError for counts and sizes that make no sense."""
    if path is not None:
        raise UserError("The source 'vessels' takes no path; images are drawn.")
    if num_samples < 1 or not 64 <= pixels <= 2048:
        raise UserError("vessels needs num_samples >= 1 and pixels in 64..2048.")
    records = [_record(index, pixels, seed) for index in range(num_samples)]
    splits = assign(records, {"validation": validation, "test": test}, seed)
    return Listing("vessels", (CLASS,), tuple(splits), factors=FACTORS, default_size=pixels, fixed_size=True)


def pose_of(seed: int, index: int) -> Pose:
    """Return how the eye of one sample stands."""
    rng = generator(seed, "vessels pose", index)
    shift = rng.uniform(-0.12, 0.12, 2)
    return Pose(rng.uniform(-0.35, 0.35), rng.uniform(0.9, 1.15), (float(shift[0]), float(shift[1])))


def landmarks(seed: int, index: int, pixels: int) -> FloatArray:
    """Return (2, 2) x and y of disc and fovea in pixels, 0 at the centre of the first pixel."""
    return pose_of(seed, index).places(np.array([DISC, FOVEA])) * pixels - 0.5


def draw(seed: int, index: int, pixels: int) -> tuple[UInt8Array, UInt8Array]:
    """Return the (P, P, 3) uint8 image of one sample and its (P, P) mask, 255 on vessels."""
    rng, pose = generator(seed, "vessels", index), pose_of(seed, index)
    axis = (np.arange(pixels) + 0.5) / pixels - 0.5
    from_centre = np.hypot(axis[:, None], axis) / _RADIUS
    vessels = np.maximum(*(rasterise(branches, pixels) for branches in _trees(rng, pose)))
    vessels[from_centre > 0.97] = 0
    image = _background(rng, from_centre)
    disc, fovea = (_spot(place, size * pose.zoom, pixels) for place, size in _spots(pose))
    image += disc[..., None] * (np.array([236.0, 206.0, 142.0]) - image)
    image *= 1 - 0.45 * fovea[..., None]
    dark = ndimage.gaussian_filter((vessels > 0).astype(np.float64), 0.6 * pixels / DEFAULT_SIZE)[..., None]
    image *= 1 - dark * rng.uniform(0.35, 0.6) * np.array([0.6, 1.0, 0.9])
    image += rng.normal(0, 3.0, image.shape)
    image[from_centre > 1] = rng.uniform(0, 6, 3)
    return np.clip(image, 0, 255).astype(np.uint8), vessels


def _trees(rng: np.random.Generator, pose: Pose) -> tuple[Branches, Branches]:
    """Return the main vessels, the same in all eyes but for a tremble, and the branches, which are an eye's own."""
    heading, bend, length, width = _ARCADES.T
    heading = np.deg2rad(heading + rng.normal(0, 3, len(heading)))[:, None]
    along = np.linspace(0, 1, _POINTS)
    angles = heading + np.deg2rad(bend)[:, None] * along + 0.15 * np.cumsum(rng.normal(0, 0.3, (8, _POINTS)), axis=1)
    steps = (length / (_POINTS - 1))[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], axis=2)
    steps[:, 0] = 0
    arcs = np.asarray(DISC) + np.cumsum(steps, axis=1)
    widths = width[:, None] * (1 - 0.5 * along)
    parent, place = np.repeat(np.arange(8), 4), np.tile([5, 10, 15, 20], 8) + rng.integers(-2, 3, 32)
    leaving = angles[parent, place] + rng.choice([-1.0, 1.0], 32) * rng.uniform(0.4, 1.1, 32)
    small = grow(rng, arcs[parent, place], leaving, length=0.32, width=0.016, generations=2)
    scale = _RADIUS * pose.zoom
    return Branches(pose.places(arcs), widths * scale), Branches(pose.places(small.points), small.widths * scale)


def _background(rng: np.random.Generator, from_centre: FloatArray) -> FloatArray:
    """Return (P, P, 3): an orange ground with clouds, lit from a side, darker towards the rim."""
    pixels = len(from_centre)
    tone = np.array([196.0, 98.0, 44.0]) * rng.uniform(0.8, 1.1) + rng.normal(0, 8, 3)
    grid = rng.normal(0, 1, (9, 9)).astype(np.float32)
    clouds = np.asarray(Image.fromarray(grid).resize((pixels, pixels), Image.Resampling.BICUBIC))
    slope, angle = rng.uniform(0, 0.25), rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, pixels)
    light = 1 + slope * (np.cos(angle) * axis + np.sin(angle) * axis[:, None]) - 0.3 * from_centre**2
    return np.asarray((light + 0.04 * clouds)[..., None] * tone)


def _spots(pose: Pose) -> list[tuple[FloatArray, float]]:
    return [(pose.places(np.array(DISC)), _DISC_RADIUS), (pose.places(np.array(FOVEA)), _FOVEA_RADIUS)]


def _spot(place: FloatArray, radius: float, pixels: int) -> FloatArray:
    """Return (P, P) in [0, 1]: a round spot with a soft edge; `radius` is in radii of the aperture."""
    axis = (np.arange(pixels) + 0.5) / pixels
    distance = np.hypot(axis - place[0], (axis - place[1])[:, None]) / (radius * _RADIUS)
    return 1 / (1 + np.exp(np.clip(8 * (distance - 1), -50, 50)))


def _record(index: int, pixels: int, seed: int) -> Record:
    values = landmarks(seed, index, pixels).ravel().tolist()
    return Record(
        path=f"vessels-{index:06d}",
        label=CLASS,
        split="",
        load=partial(_load, seed, index, pixels),
        header=partial(Header, pixels, pixels, 3, pixels * pixels * 3),
        mask=partial(_mask, seed, index, pixels),
        factors=dict(zip(FACTORS, values, strict=True)),
    )


def _load(seed: int, index: int, pixels: int, channels: int) -> UInt8Array:
    return to_array(Image.fromarray(_drawn(seed, index, pixels)[0]), channels)


def _mask(seed: int, index: int, pixels: int) -> UInt8Array:
    return _drawn(seed, index, pixels)[1]


@lru_cache(maxsize=16)  # image and mask of a sample are asked for one after the other
def _drawn(seed: int, index: int, pixels: int) -> tuple[UInt8Array, UInt8Array]:
    return draw(seed, index, pixels)
