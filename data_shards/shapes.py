"""Masks of shapes that belong to no image: what an adversarial prior shows its critic as real.

Chen et al. 2021 (https://arxiv.org/abs/2108.09440) take vessels of angiographies of other organs and modalities, of
which 3 to 11 % is foreground; here they are drawn. Every mask is a pure function of (seed, index, size).

A tree grows generation by generation: a branch is a polyline whose heading drifts, and which gets thinner; its children
leave it at angles, shorter and thinner. Where trees reach and how thick they are is chosen so that the foreground has
the share that was drawn for the mask.

Legend: B branches, T points of a branch; places are (x, y) in sides of the mask, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from data_shards.decode import UInt8Array
from data_shards.errors import UserError
from data_shards.keyed import generator

VESSEL_SHARE = (0.03, 0.11)
MIN_SIZE = 64
_POINTS = 12
_PIECES = 3  # a branch is drawn in pieces of one width each
_DRAWN_PX = 256  # smaller masks are drawn at a multiple of their size
_TRIES = 5
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Branches:
    """Polylines: `points` (B, T, 2) and the `widths` (B, T) of vessels there, in sides of the mask."""

    points: FloatArray
    widths: FloatArray


def vessel_mask(seed: int, index: int, size: int, share: tuple[float, float] = VESSEL_SHARE) -> UInt8Array:
    """Return a (size, size) mask, 255 on branching vessels, 0 elsewhere; the foreground's share is in that range."""
    _check(size)
    low, high = share
    for attempt in count():  # of a thousand trees a few do not get there, most of them outside of the mask
        mask = _drawn_tree(generator(seed, "vessel mask", index, attempt), size, share)
        if low <= np.count_nonzero(mask) / mask.size <= high:
            return mask
    raise AssertionError("not reached")


def _drawn_tree(rng: np.random.Generator, size: int, share_range: tuple[float, float]) -> UInt8Array:
    """Return the mask of one tree, as thick as it takes for a share of foreground that is drawn first."""
    wanted = rng.uniform(*share_range)
    tree = grow(rng, *_roots(rng), length=rng.uniform(0.35, 0.6), width=0.02, generations=4)
    thickness = 1.0
    for _ in range(_TRIES):
        mask = rasterise(tree, size, thickness)
        share = np.count_nonzero(mask) / mask.size
        if abs(share - wanted) < 0.004:
            break
        thickness *= min(3.0, max(0.3, wanted / max(share, 1e-6)))
    return mask


def disc_mask(seed: int, index: int, size: int) -> UInt8Array:
    """Return a (size, size) mask, 255 in one ellipse that is smooth but not perfect, and lies within the mask."""
    _check(size)
    rng = generator(seed, "disc mask", index)
    radius, ratio, turn = rng.uniform(0.06, 0.14), rng.uniform(0.8, 1.25), rng.uniform(0, np.pi)
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    heights, phases = rng.normal(0, 0.02, (4, 1)), rng.uniform(0, 2 * np.pi, (4, 1))
    waves = (heights * np.cos(np.arange(2, 6)[:, None] * angle + phases)).sum(axis=0)
    outline = radius * (1 + waves)[:, None] * np.stack([np.cos(angle) * ratio**0.5, np.sin(angle) / ratio**0.5], axis=1)
    reach = np.abs(outline).max() * 2**0.5
    points = outline @ rotation(turn) + rng.uniform(reach, 1 - reach, 2)
    side = size * _zoom(size)
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).polygon([(x, y) for x, y in (points * side).tolist()], fill=255)
    return _reduced(image, size)


def grow(
    rng: np.random.Generator,
    starts: FloatArray,
    headings: FloatArray,
    *,
    length: float,
    width: float,
    generations: int,
) -> Branches:
    """Return all branches of trees with roots at `starts` (B, 2) towards `headings` (B,), in radians."""
    points, widths = [], []
    lengths, thick = np.full(len(starts), length), np.full(len(starts), width)
    for _ in range(generations):
        drift = rng.normal(0, 0.6, (len(starts), 1)) + np.cumsum(rng.normal(0, 0.25, (len(starts), _POINTS)), axis=1)
        angles = headings[:, None] + drift * np.linspace(0, 1, _POINTS)
        steps = (lengths / (_POINTS - 1))[:, None, None] * np.stack([np.cos(angles), np.sin(angles)], axis=2)
        steps[:, 0] = 0
        points.append(starts[:, None] + np.cumsum(steps, axis=1))
        widths.append(thick[:, None] * np.linspace(1, 0.75, _POINTS))
        starts, headings, lengths, thick = _children(rng, points[-1], angles, lengths, widths[-1])
    return Branches(np.concatenate(points), np.concatenate(widths))


def rasterise(branches: Branches, size: int, thickness: float = 1.0) -> UInt8Array:
    """Return a (size, size) mask, 255 on the branches, `thickness` times as wide as they say."""
    zoom = _zoom(size)
    side = size * zoom
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    cuts = np.linspace(0, branches.points.shape[1] - 1, _PIECES + 1).astype(int)
    for first, last in pairwise(cuts):
        pieces = (branches.points[:, first : last + 1] * side).reshape(len(branches.points), -1).tolist()
        widths = np.maximum(1, np.rint(branches.widths[:, first] * thickness * side)).astype(int).tolist()
        for piece, width in zip(pieces, widths, strict=True):
            pen.line(piece, fill=255, width=width, joint="curve" if width > 3 else None)
    return _reduced(image, size)


def rotation(angle: float) -> FloatArray:
    """Return the (2, 2) matrix R of a turn, for places (N, 2) as places @ R."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _roots(rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Return (B, 2) starts and (B,) headings: vessels leave one place, or enter from the border."""
    num = int(rng.integers(4, 8))
    around = (np.arange(num) + rng.uniform(0, 0.7, num)) * (2 * np.pi / num)
    if rng.random() < 0.5:
        return np.tile(rng.uniform(0.15, 0.85, 2), (num, 1)), around
    outside = 0.5 + 0.6 * np.stack([np.cos(around), np.sin(around)], axis=1)
    return outside, around + np.pi + rng.normal(0, 0.3, num)


def _children(
    rng: np.random.Generator, points: FloatArray, angles: FloatArray, lengths: FloatArray, widths: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return start, heading, length and width of two children a branch: one from its end, one from along it."""
    num = len(points)
    parent = np.repeat(np.arange(num), 2)
    place = np.where(np.arange(2 * num) % 2, rng.integers(3, _POINTS - 2, 2 * num), _POINTS - 1)
    side = rng.choice([-1.0, 1.0], 2 * num)
    turn = side * np.where(np.arange(2 * num) % 2, rng.uniform(0.5, 1.2, 2 * num), rng.uniform(0.0, 0.5, 2 * num))
    shorter, thinner = rng.uniform(0.55, 0.85, 2 * num), rng.uniform(0.6, 0.85, 2 * num)
    return (
        points[parent, place],
        angles[parent, place] + turn,
        lengths[parent] * shorter,
        widths[parent, place] * thinner,
    )


def _zoom(size: int) -> int:
    return -(-_DRAWN_PX // size)


def _reduced(image: Image.Image, size: int) -> UInt8Array:
    """Return the (size, size) mask of a drawing at a multiple of it: what at least half of a pixel shows."""
    if image.width > size:
        image = image.resize((size, size), Image.Resampling.BOX)
    return np.where(np.asarray(image) >= 128, 255, 0).astype(np.uint8)


def _check(size: int) -> None:
    if not MIN_SIZE <= size <= 4096:
        raise UserError(f"Masks of shapes have {MIN_SIZE} to 4096 pixels a side, not {size}.")
