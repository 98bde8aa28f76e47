"""Draws are keyed per image, well distributed, and separate per option; boxes and matrices agree with Pillow."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_shards.augment import (
    AugmentConfig,
    Parameters,
    box_matrix,
    centre_box,
    crop_box,
    draw,
    draw_views,
    resized,
    smallest_decode,
)
from data_shards.errors import UserError

EVERYTHING = AugmentConfig(
    size=32, crop_scale=(0.2, 1.0), hflip=True, vflip=True, rotate90=True, rotate_degrees=40, translate=0.2,
    scale=(0.7, 1.4), shear=15, brightness=0.4, contrast=0.3, saturation=0.5, hue=0.2, erase=0.5,
)  # fmt: skip
IDS = np.arange(5000) * 3 + 1


def same(a: Parameters, b: Parameters) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Parameters))


@pytest.mark.parametrize("rows", [[7], [7, 3], [499, 7, 7, 0, 1, 2, 8], list(range(400, 0, -1))])
def test_the_draws_of_an_image_do_not_depend_on_the_batch(rows: list[int]) -> None:
    whole, picked = draw(EVERYTHING, 5, 2, IDS[:500], view=1), np.array(rows)
    assert same(draw(EVERYTHING, 5, 2, IDS[picked], view=1), whole[picked])


def test_seed_epoch_view_and_visit_each_give_other_draws() -> None:
    visited = np.ones(len(IDS), dtype=np.int64)
    all_draws = [
        draw(EVERYTHING, 0, 0, IDS),
        draw(EVERYTHING, 1, 0, IDS),
        draw(EVERYTHING, 0, 1, IDS),
        draw(EVERYTHING, 0, 0, IDS, view=1),
        draw(EVERYTHING, 0, 0, IDS, visits=visited),
    ]
    angles = np.stack([d.colour[:, 0] for d in all_draws])
    assert np.abs(np.corrcoef(angles) - np.eye(5)).max() < 0.06
    assert same(draw(EVERYTHING, 0, 0, IDS, visits=0 * visited), all_draws[0])


def test_views_lie_next_to_each_other() -> None:
    both = draw_views(EVERYTHING, 0, 3, IDS[:10], views=2)
    for view in (0, 1):
        assert same(both[np.arange(view, 20, 2)], draw(EVERYTHING, 0, 3, IDS[:10], view))


def test_views_share_what_is_not_their_own() -> None:
    own = AugmentConfig(size=32, rotate_degrees=2, brightness=0.4, gray=0.2, erase=0.3)
    config = replace(EVERYTHING, own=own)
    both, shared = draw_views(config, 0, 3, IDS, views=2), draw(EVERYTHING, 0, 3, IDS)
    for view in (0, 1):
        seen, alone = both[np.arange(view, 2 * len(IDS), 2)], draw(own, 0, 3, IDS, view=1 + view)
        for name in ("hflip", "vflip", "turns", "crop"):
            assert np.array_equal(getattr(seen, name), getattr(shared, name))
        for name in ("colour", "erase"):
            assert np.array_equal(getattr(seen, name), getattr(alone, name))
        assert np.allclose(seen.warp, shared.warp @ alone.warp)
    assert not np.array_equal(both[np.arange(0, 20, 2)].colour, both[np.arange(1, 20, 2)].colour)
    assert AugmentConfig(size=32, own=own).warps and not AugmentConfig(size=32, own=AugmentConfig(size=32)).warps


def test_colour_goes_as_often_as_asked() -> None:
    gone = draw(AugmentConfig(size=32, gray=0.2), 0, 0, IDS).colour[:, 2] == 0
    assert abs(gone.mean() - 0.2) < 0.02


@pytest.mark.parametrize("off", ["hflip", "rotate90", "brightness", "hue", "erase"])
def test_switching_one_option_off_leaves_the_others_alone(off: str) -> None:
    full, less = draw(EVERYTHING, 0, 0, IDS), draw(replace(EVERYTHING, **{off: 0}), 0, 0, IDS)
    assert np.array_equal(full.vflip, less.vflip)
    assert np.array_equal(full.crop, less.crop)
    assert np.array_equal(full.colour[:, 1:3], less.colour[:, 1:3])


def test_draws_cover_their_ranges() -> None:
    p = draw(EVERYTHING, 0, 0, IDS)
    assert abs(p.hflip.mean() - 0.5) < 0.03
    assert abs(p.vflip.mean() - 0.5) < 0.03
    assert np.abs(np.bincount(p.turns, minlength=4) / len(IDS) - 0.25).max() < 0.03
    assert p.crop[:, 0].min() < 0.21
    assert p.crop[:, 0].max() > 0.99
    for column, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.4 * np.pi, 0.4 * np.pi)]):
        values = p.colour[:, column]
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high >= values.max() > high - 0.02 * (high - low)
    erased = p.erase[p.erase[:, 2] > 0]
    assert abs(len(erased) / len(IDS) - 0.5) < 0.03
    assert (erased >= 0).all()
    assert (erased <= 1).all()
    areas = (erased[:, 2] - erased[:, 0]) * (erased[:, 3] - erased[:, 1])
    assert 0.02 <= areas.min() <= areas.max() <= 0.2 + 1e-9


def test_the_warp_is_a_similarity_with_the_configured_angle_zoom_and_shift() -> None:
    config = AugmentConfig(size=8, rotate_degrees=30, scale=(0.5, 2.0), translate=0.1)
    m = draw(config, 0, 0, IDS).warp
    linear = m[:, :2, :2]
    zoom = 1 / np.sqrt(np.linalg.det(linear))
    assert 0.5 <= zoom.min() < 0.52
    assert 1.95 < zoom.max() <= 2.0
    gram = linear @ linear.transpose(0, 2, 1) * (zoom**2)[:, None, None]
    assert np.allclose(gram, np.eye(2))
    angle = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert 29 < np.abs(angle).max() <= 30
    assert 0.19 < np.abs(m[:, :2, 2]).max() <= 0.2  # a shift by 0.1 of the size in coordinates from -1 to 1


def test_nothing_is_drawn_by_default() -> None:
    p = draw(AugmentConfig(size=8), 0, 0, IDS)
    assert np.array_equal(p.warp, np.broadcast_to(np.eye(3), p.warp.shape))
    assert not p.erase.any()
    assert np.array_equal(p.colour, np.broadcast_to([1.0, 1.0, 1.0, 0.0], p.colour.shape))


@pytest.mark.parametrize("shape", [(100, 100), (60, 200), (333, 47)])
def test_random_crops_lie_inside_and_have_the_drawn_area(shape: tuple[int, int]) -> None:
    height, width = shape
    config = AugmentConfig(size=32, crop_scale=(0.1, 0.3))
    for crop in draw(config, 0, 0, IDS[:200]).crop:
        left, top, right, bottom = crop_box(crop, height, width)
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        assert (right - left) * (bottom - top) <= crop[0] * height * width * (1 + 1e-9)
        if right - left < width and bottom - top < height:
            assert np.isclose((right - left) * (bottom - top), crop[0] * height * width)
            assert np.isclose((right - left) / (bottom - top), np.exp(crop[1]))


@pytest.mark.parametrize(("shape", "size"), [((96, 120), 56), ((300, 256), 224), ((64, 64), 64), ((70, 64), 64)])
def test_evaluation_box_is_resize_then_centre_crop(shape: tuple[int, int], size: int) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    config = AugmentConfig(size=size)
    found = resized(image, centre_box(config, *shape), size)
    shorter = round(size * 256 / 224) if min(shape) >= round(size * 256 / 224) else size
    scaled = (round(shape[1] * shorter / min(shape)), round(shape[0] * shorter / min(shape)))
    two_steps = Image.fromarray(image).resize(scaled, Image.Resampling.BILINEAR)
    left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    expected = np.asarray(two_steps.crop((left, top, left + size, top + size)))
    assert np.abs(found.astype(int) - expected).mean() < 2.0
    if min(shape) == size:
        assert np.array_equal(found, expected)


def test_box_matrix_maps_the_corners_of_the_crop() -> None:
    m = box_matrix((10.0, 20.0, 40.0, 30.0), height=50, width=80)
    for x, y, px, py in ((-1, -1, 10, 20), (1, 1, 40, 30), (0, 0, 25, 25)):
        u, v, one = m @ [x, y, 1]
        assert np.allclose([(u + 1) / 2 * 80, (v + 1) / 2 * 50, one], [px, py, 1])


def test_decoding_never_loses_the_detail_of_a_crop() -> None:
    config = AugmentConfig(size=64, crop_scale=(0.05, 1.0), crop_ratio=(0.5, 2.0))
    for crop in draw(config, 0, 0, IDS[:300]).crop:
        side = smallest_decode(config, crop)[0]
        for height, width in ((side, side), (side, 2 * side), (3 * side, side)):
            left, top, right, bottom = crop_box(crop, height, width)
            assert min(right - left, bottom - top) >= 64 - 1e-6
    assert smallest_decode(config, None) == (74, 74)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size"),
        ({"channels": 2}, "channels"),
        ({"resize": 20}, "resize"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"scale": (1.2, 0.8)}, "scale"),
        ({"hue": 0.7}, "hue"),
        ({"brightness": -0.1}, "brightness"),
        ({"padding": "mirror"}, "padding"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
        ({"own": AugmentConfig(size=32, hflip=True)}, "own"),
    ],
)
def test_user_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AugmentConfig(**{"size": 32, **options})
