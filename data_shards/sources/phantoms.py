"""phantoms - drawn skin lesions whose colour, shape, size and artefacts are independent and known.

Every sample is a pure function of (seed, sample id): four factors uniform in [0, 1), kept in the table as
`factor_colour`, `factor_shape`, `factor_size`, `factor_artefact`, and a mask of the lesion. The class is the level of
the factors named by `label_by`: level = floor(value * levels), e.g. label_by=colour+shape, levels=3 gives the nine
classes colour0-shape0 .. colour2-shape2. The other factors are then nuisance: what a good embedding ignores is known.

colour: light brown -> dark brown -> blue-black; shape: round -> jagged outline; size: radius 0.14 -> 0.38 of the side;
artefact: clean -> hairs -> hairs and a ruler. Skin tone, light, position and texture vary freely.

Legend: P side of the drawing in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from data_shards.decode import Header, UInt8Array
from data_shards.errors import UserError, nearest_of
from data_shards.keyed import fold, generator, key, uniform
from data_shards.sources.listing import Listing, Record
from data_shards.sources.splits import assign

FACTORS = ("colour", "shape", "size", "artefact")
DEFAULT_SIZE = 64
_SKIN = np.array([[240.0, 208.0, 188.0], [214.0, 168.0, 138.0]])
_LESION = np.array([[186.0, 126.0, 88.0], [126.0, 74.0, 46.0], [74.0, 46.0, 38.0], [52.0, 48.0, 62.0]])
_SUPERSAMPLING = 4

FloatArray = npt.NDArray[np.float64]


def read(
    path: Path | None = None,
    *,
    num_samples: int = 600,
    label_by: str = "colour+shape",
    levels: int = 3,
    pixels: int = DEFAULT_SIZE,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Listing:
    """List the phantoms; raises UserError for unknown factors or counts that make no sense."""
    if path is not None:
        raise UserError("The source 'phantoms' takes no path; images are drawn.")
    if num_samples < 1 or not 2 <= levels <= 10 or not 8 <= pixels <= 2048:
        raise UserError("phantoms needs num_samples >= 1, levels in 2..10 and pixels in 8..2048.")
    by = _label_factors(label_by)
    values = uniform(fold(key(seed, "phantom factors"), np.arange(num_samples)), len(FACTORS))
    # rounded to what the table keeps, so that a class can be recomputed from the stored factors
    values = np.minimum(values.astype(np.float32), np.nextafter(np.float32(1), np.float32(0))).astype(np.float64)
    records = [_record(index, values[index], by, levels, pixels, seed) for index in range(num_samples)]
    splits = assign(records, {"validation": validation, "test": test}, seed)
    classes = tuple("-".join(names) for names in product(*([f"{name}{i}" for i in range(levels)] for name in by)))
    return Listing("phantoms", classes, tuple(splits), factors=FACTORS, default_size=pixels)


def label_of(values: FloatArray, by: tuple[str, ...], levels: int) -> str:
    """Return the class of a sample from its four factor values."""
    return "-".join(f"{name}{int(values[FACTORS.index(name)] * levels)}" for name in by)


def draw(index: int, values: Sequence[float], pixels: int, seed: int) -> tuple[UInt8Array, UInt8Array]:
    """Return the (P, P, 3) uint8 image of one sample and its (P, P) mask, 255 inside the lesion."""
    colour, shape, size, artefact = values
    rng = generator(seed, "phantom", index)
    image = _skin(rng, pixels)
    inside = _lesion(rng, pixels, shape, size)
    body = _gradient(_LESION, colour) + 22 * _clouds(rng, pixels, 5)[..., None] * np.array([1.0, 0.9, 0.8])
    image = image + inside[..., None] * (body - image)
    image = _artefacts(rng, image, artefact)
    image += rng.normal(0, 2.5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), np.where(inside > 0.5, 255, 0).astype(np.uint8)


def _record(index: int, values: FloatArray, by: tuple[str, ...], levels: int, pixels: int, seed: int) -> Record:
    return Record(
        path=f"phantom-{index:06d}",
        label=label_of(values, by, levels),
        split="",
        load=partial(_load, index, values, pixels, seed),
        header=partial(Header, pixels, pixels, 3, pixels * pixels * 3),
        mask=partial(_mask, index, values, pixels, seed),
        factors=dict(zip(FACTORS, values.tolist(), strict=True)),
    )


def _load(index: int, values: FloatArray, pixels: int, seed: int, channels: int) -> UInt8Array:
    image, _ = _drawn(index, tuple(values), pixels, seed)
    return image if channels == 3 else np.asarray(Image.fromarray(image).convert("L"))[..., None]


def _mask(index: int, values: FloatArray, pixels: int, seed: int) -> UInt8Array:
    return _drawn(index, tuple(values), pixels, seed)[1]


@lru_cache(maxsize=16)  # image and mask of a sample are asked for one after the other
def _drawn(index: int, values: tuple[float, ...], pixels: int, seed: int) -> tuple[UInt8Array, UInt8Array]:
    return draw(index, values, pixels, seed)


def _label_factors(label_by: str) -> tuple[str, ...]:
    names = tuple(label_by.split("+"))
    for name in names:
        if name not in FACTORS:
            raise UserError(
                f"label_by={label_by}: '{name}' is not a factor{nearest_of(name, list(FACTORS))}; "
                f"join any of {', '.join(FACTORS)} with '+'."
            )
    if len(set(names)) != len(names):
        raise UserError(f"label_by={label_by} names a factor twice.")
    return names


def _gradient(stops: FloatArray, position: float) -> FloatArray:
    """Return the colour at `position` in [0, 1] of a ramp through `stops`."""
    places = np.linspace(0, 1, len(stops))
    return np.array([np.interp(position, places, stops[:, channel]) for channel in range(3)])


def _clouds(rng: np.random.Generator, pixels: int, coarse: int) -> FloatArray:
    """Return (P, P) smooth noise of about unit amplitude: a coarse grid, scaled up bicubically."""
    grid = rng.normal(0, 1, (coarse, coarse)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((pixels, pixels), Image.Resampling.BICUBIC), dtype=np.float64)


def _skin(rng: np.random.Generator, pixels: int) -> FloatArray:
    tone = _gradient(_SKIN, rng.random())
    texture = 5 * _clouds(rng, pixels, 4) + 4 * _clouds(rng, pixels, 11) + 3 * _clouds(rng, pixels, max(4, pixels // 3))
    y, x = np.mgrid[-1 : 1 : pixels * 1j, -1 : 1 : pixels * 1j]
    angle = rng.random() * 2 * np.pi
    light = 9 * (np.cos(angle) * x + np.sin(angle) * y) - 14 * (x**2 + y**2) * rng.random()
    return tone + (texture + light)[..., None] * np.array([0.8, 1.0, 1.05])


def _lesion(rng: np.random.Generator, pixels: int, shape: float, size: float) -> FloatArray:
    """Return (P, P) in [0, 1]: a star-shaped outline with a soft edge; `shape` is the height of its waves."""
    radius = 0.14 + 0.24 * size
    cx, cy = rng.uniform(-0.1, 0.1, 2)
    y, x = np.mgrid[-0.5 : 0.5 : pixels * 1j, -0.5 : 0.5 : pixels * 1j]
    angle, distance = np.arctan2(y - cy, x - cx), np.hypot(y - cy, x - cx)
    waves = np.zeros_like(angle)
    for number in range(2, 9):
        height, phase = rng.normal() / number**0.5, rng.random() * 2 * np.pi
        waves += height * np.cos(number * angle + phase)
    waves /= waves.std()  # the factor alone sets how jagged the outline is
    outline = radius * np.clip(1 + (0.02 + 0.2 * shape) * waves, 0.35, 1.6)
    softness = max(0.012, 0.6 / pixels)
    exponent = np.clip((distance - outline) / softness, -50, 50)
    return 1 / (1 + np.exp(exponent))


def _artefacts(rng: np.random.Generator, image: FloatArray, amount: float) -> FloatArray:
    """Lay hairs (from 1/3 on) and a ruler's edge (from 2/3 on) over the image."""
    pixels = image.shape[0]
    side = pixels * _SUPERSAMPLING
    layer = Image.new("L", (side, side))
    pen = ImageDraw.Draw(layer)
    num_hairs = 0 if amount < 1 / 3 else 2 + int(9 * (amount - 1 / 3))
    for _ in range(num_hairs):
        start, bend, stop = rng.uniform(-0.1, 1.1, (3, 2)) * side
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * stop
        pen.line(
            [tuple(point) for point in curve.tolist()], fill=200, width=max(1, round(side * rng.uniform(0.006, 0.012)))
        )
    if amount >= 2 / 3:
        _ruler(pen, side, bool(rng.random() < 0.5))
    cover = np.asarray(layer.resize((pixels, pixels), Image.Resampling.BOX), dtype=np.float64)[..., None] / 255
    return image + cover * (np.array([38.0, 30.0, 28.0]) - image)


def _ruler(pen: ImageDraw.ImageDraw, side: int, left: bool) -> None:
    for tick in range(1, 20):
        length, place = (0.09 if tick % 5 == 0 else 0.05) * side, tick * side / 20
        ends = [(0, place), (length, place)] if left else [(place, side), (place, side - length)]
        pen.line(ends, fill=230, width=max(1, round(side * 0.008)))
