"""Pixels: flips are exact, the geometry is the one applied, colours follow the formulas, bits do not know the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional

from data_shards.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, Parameters, draw, draw_views
from data_shards.augment_batch import apply, colour_matrices, normalise, sampling_grid, warp_masks
from data_shards.errors import UserError

LUMA = np.array([0.299, 0.587, 0.114])
IDS = np.arange(24) * 11 + 5
PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
CONFIGS = {
    "moves": AugmentConfig(21, hflip=True, vflip=True, rotate90=True),
    "warp": AugmentConfig(21, hflip=True, rotate90=True, rotate_degrees=180, translate=0.1, scale=(0.8, 1.2), shear=10),
    "stretch": AugmentConfig(21, hflip=True, vflip=True, translate=0.3, scale=(0.6, 1.5), padding="zeros"),
    "turns": AugmentConfig(21, hflip=True, rotate90=True, translate=0.3, scale=(0.6, 1.5), erase=0.5),
    "turns and colour": AugmentConfig(21, rotate90=True, translate=0.3, contrast=0.3, hue=0.2, erase=0.5),
    "border": AugmentConfig(21, rotate_degrees=25, padding="border", brightness=0.2),
    "colour": AugmentConfig(21, vflip=True, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.3),
    "contrast": AugmentConfig(21, contrast=0.5),
    "all": AugmentConfig(
        21, hflip=True, rotate_degrees=20, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, erase=0.7
    ),
}


def random_images(num: int = 24, channels: int = 3, size: int = 21) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (num, channels, size, size), dtype=np.uint8)


def applied(images: np.ndarray, config: AugmentConfig, ids: np.ndarray = IDS) -> tuple[np.ndarray, Parameters]:
    parameters = draw(config, 0, 0, ids)
    return apply(torch.from_numpy(images), parameters, config).numpy(), parameters


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_gives_the_same_bits_alone_in_a_batch_and_with_more_threads(name: str, channels: int) -> None:
    images, before = random_images(channels=channels), torch.get_num_threads()
    whole = applied(images, CONFIGS[name])[0]
    for rows in ([0], [5], [23, 5, 11], list(range(23, -1, -1))):
        assert np.array_equal(applied(images[rows], CONFIGS[name], IDS[rows])[0], whole[rows])
    torch.set_num_threads(2)
    try:
        assert np.array_equal(applied(images, CONFIGS[name])[0], whole)
    finally:
        torch.set_num_threads(before)


def test_flips_and_quarter_turns_are_exact() -> None:
    images = random_images()
    config = AugmentConfig(21, hflip=True, vflip=True, rotate90=True, **PLAIN)
    found, p = applied(images, config)
    kinds = set()
    for i, image in enumerate(images):
        flipped = image[:, :: -1 if p.vflip[i] else 1, :: -1 if p.hflip[i] else 1]
        expected = np.rot90(flipped, p.turns[i], axes=(1, 2))
        assert np.array_equal(np.rint(found[i] * 255), expected)
        kinds.add((bool(p.hflip[i]), bool(p.vflip[i]), int(p.turns[i])))
    assert len(kinds) > 8


def test_the_warp_moves_pixels_as_flips_and_turns_do() -> None:
    images = random_images()
    config = AugmentConfig(21, hflip=True, vflip=True, rotate90=True, **PLAIN)
    exact, p = applied(images, config)
    warped = apply(torch.from_numpy(images), p, replace(config, rotate_degrees=1e-9)).numpy()
    assert np.abs(exact - warped).max() < 1e-4


@pytest.mark.parametrize(
    ("padding", "mode"), [("border", "nearest"), ("reflection", "reflect"), ("zeros", "grid-constant")]
)
def test_the_warp_agrees_with_scipy(padding: Any, mode: str) -> None:
    images, size = random_images(num=6), 21
    config = AugmentConfig(
        size, rotate90=True, rotate_degrees=90, translate=0.2, scale=(0.6, 1.5), shear=20, padding=padding, **PLAIN
    )
    found, p = applied(images, config, IDS[:6])
    y, x = np.mgrid[:size, :size]
    grid = np.stack([(2 * x + 1) / size - 1, (2 * y + 1) / size - 1, np.ones_like(x, dtype=float)])
    for i in range(6):
        source_x, source_y = (np.tensordot(p.warp[i], grid, 1)[:2] + 1) * size / 2 - 0.5
        for c in range(3):
            expected = ndimage.map_coordinates(images[i, c].astype(float), [source_y, source_x], order=1, mode=mode)
            assert np.abs(found[i, c] * 255 - expected).max() < 0.05


@pytest.mark.parametrize("padding", ["border", "reflection", "zeros"])
@pytest.mark.parametrize("shape", [(21, 21), (25, 18)])
@pytest.mark.parametrize("brightness", [0.0, 1e-9])  # with and without a step between resampling and normalisation
def test_every_warp_is_what_grid_sample_makes_of_it(padding: Any, shape: tuple[int, int], brightness: float) -> None:
    config = AugmentConfig(21, rotate90=True, translate=0.4, scale=(0.5, 2), padding=padding, brightness=brightness)
    parameters = draw(config, 0, 0, IDS)
    parameters.warp[::5] = draw(replace(config, rotate_degrees=30), 0, 0, IDS[::5]).warp
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (24, 3, *shape), dtype=np.uint8))
    grid = sampling_grid(parameters.warp, 21)
    expected = functional.grid_sample(images.float(), grid, "bilinear", padding, align_corners=False)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    assert (apply(images, parameters, config, True) - (expected / 255 - mean) / std).abs().max() < 1e-4


def test_one_channel_is_stretched_once_and_repeated() -> None:
    images = torch.from_numpy(random_images(channels=1))
    for name in ("stretch", "turns", "turns and colour", "border"):
        config = replace(CONFIGS[name], hue=0.0)
        found, p = applied(images.numpy(), config)
        expected = apply(images.repeat(1, 3, 1, 1), p, config)
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)


def test_brightness_and_contrast_turn_about_the_mean_of_the_image() -> None:
    images = random_images()
    found, p = applied(images, AugmentConfig(21, brightness=0.4, contrast=0.4, **PLAIN))
    for i, image in enumerate(images.astype(float)):
        pivot = np.tensordot(LUMA, image, 1).mean()
        brightness, contrast = p.colour[i, :2]
        expected = contrast * brightness * image + (1 - contrast) * brightness * pivot
        assert np.abs(found[i] - expected.clip(0, 255) / 255).max() < 1e-5


def test_saturation_and_hue_follow_the_formulas() -> None:
    images = random_images()
    found, p = applied(images, AugmentConfig(21, saturation=0.9, hue=0.5, **PLAIN))
    for i, image in enumerate(images.astype(float)):
        gray = np.tensordot(LUMA, image, 1)
        saturated = gray + p.colour[i, 2] * (image - gray)
        turn = Rotation.from_rotvec(p.colour[i, 3] * np.ones(3) / np.sqrt(3)).as_matrix()
        expected = np.tensordot(turn, saturated, 1)
        assert np.abs(found[i] - expected.clip(0, 255) / 255).max() < 1e-5


def test_an_image_without_colour_is_its_luma() -> None:
    images = random_images()
    found, _ = applied(images, AugmentConfig(21, gray=1.0, **PLAIN))
    for i, image in enumerate(images.astype(float)):
        assert np.abs(found[i] - np.tensordot(LUMA, image, 1) / 255).max() < 1e-5


def test_views_get_colours_of_their_own() -> None:
    images = torch.from_numpy(random_images())
    own = AugmentConfig(21, brightness=0.5, gray=1.0)
    config = AugmentConfig(21, brightness=0.9, own=own, **PLAIN)
    ids = np.arange(len(images))
    drawn = draw_views(config, 0, 0, ids, views=2)
    found = apply(images.repeat_interleave(2, dim=0), drawn, config)
    for view in (0, 1):
        alone = apply(images, draw(own, 0, 0, ids, view=1 + view), AugmentConfig(21, brightness=0.5, gray=1.0, **PLAIN))
        assert torch.equal(found[view::2], alone)


def test_colour_maps_leave_gray_gray_and_a_third_of_a_turn_moves_red_to_green() -> None:
    m = colour_matrices(np.array([[1.0, 1.0, 0.3, 1.1], [1.0, 1.0, 1.0, 2 * np.pi / 3]]))
    assert np.allclose(m @ np.ones(3), 1)
    assert np.allclose(m[1] @ [1, 0, 0], [0, 1, 0])


def test_gray_images_are_repeated_and_normalised_per_channel() -> None:
    images = random_images(channels=1)
    config = AugmentConfig(21)
    found = normalise(torch.from_numpy(images), config).numpy()
    for c, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        assert np.allclose(found[:, c], (images[:, 0] / 255 - mean) / std, atol=1e-5)
    one = normalise(torch.from_numpy(images), AugmentConfig(21, channels=1)).numpy()
    assert np.allclose(one, images / 127.5 - 1, atol=1e-5)


def test_erased_rectangles_are_the_mean_colour_and_nothing_else_changes() -> None:
    images = random_images(size=40)
    config = AugmentConfig(40, erase=0.5, erase_area=(0.1, 0.3))
    found, p = applied(images, config)
    kept = normalise(torch.from_numpy(images), config).numpy()
    centres = (np.arange(40) + 0.5) / 40
    for i, (left, top, right, bottom) in enumerate(p.erase):
        inside = np.outer((centres >= top) & (centres < bottom), (centres >= left) & (centres < right))
        assert inside.any() == (right > 0)
        assert (found[i][:, inside] == 0).all()
        assert np.array_equal(found[i][:, ~inside], kept[i][:, ~inside])


def test_masks_follow_flips_exactly() -> None:
    masks = list(np.random.default_rng(0).integers(0, 256, (24, 21, 21), dtype=np.uint8))
    p = draw(AugmentConfig(21, hflip=True, vflip=True, rotate90=True), 0, 0, IDS)
    found = warp_masks(masks, p.warp, 21).numpy()
    for i, mask in enumerate(masks):
        flipped = mask[:: -1 if p.vflip[i] else 1, :: -1 if p.hflip[i] else 1]
        assert np.array_equal(found[i], np.rot90(flipped, p.turns[i]))


def test_colour_images_for_a_gray_network_are_a_user_error() -> None:
    with pytest.raises(UserError, match="3 channels"):
        normalise(torch.from_numpy(random_images()), AugmentConfig(21, channels=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_gives_the_same_images(name: str) -> None:
    images, config = torch.from_numpy(random_images()), CONFIGS[name]
    p = draw(config, 0, 0, IDS)
    on_gpu = apply(images.cuda(), p, config)
    assert torch.allclose(apply(images, p, config), on_gpu.cpu(), atol=2e-4)
    alone = apply(images[3:4].cuda(), p[np.array([3])], config)
    assert torch.equal(alone[0], on_gpu[3])
