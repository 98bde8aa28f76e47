from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.fitting import encode_image, fit_image, fit_mask

FITS = ("crop", "pad", "stretch")


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(5, 5, 3), (40, 20, 3), (7, 90, 1), (1, 3000, 1), (1, 1, 3)])
def test_every_shape_becomes_square(fit: str, shape: tuple[int, int, int]) -> None:
    array = np.full(shape, 77, dtype=np.uint8)
    fitted = fit_image(array, 16, fit)
    assert fitted.shape == (16, 16, shape[2])
    inside = fitted[fitted > 0]
    assert set(np.unique(inside)) == {77}
    assert fit == "pad" or inside.size == fitted.size


def test_crop_takes_the_centre_and_pad_keeps_everything() -> None:
    array = np.zeros((10, 30, 1), dtype=np.uint8)
    array[:, 10:20] = 200
    assert (fit_image(array, 10, "crop") == 200).all()
    padded = fit_image(array, 30, "pad")[..., 0]
    assert np.array_equal(padded[10:20], array[..., 0])
    assert not padded[:10].any()
    assert not padded[20:].any()


@pytest.mark.parametrize("fit", FITS)
def test_masks_follow_the_image_without_new_values(fit: str) -> None:
    array = np.zeros((40, 60, 1), dtype=np.uint8)
    array[10:30, 20:40] = 255
    image = fit_image(array, 20, fit)[..., 0]
    mask = np.asarray(fit_mask(Image.fromarray(array[..., 0]), 20, fit))
    assert set(np.unique(mask)) <= {0, 255}
    assert np.mean((image > 127) == (mask > 127)) > 0.95


def test_encodings() -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert encode_image(array, "raw") == array.tobytes()
    png = Image.open(io.BytesIO(encode_image(array, "png")))
    assert png.format == "PNG"
    assert np.array_equal(np.asarray(png), array)
    assert Image.open(io.BytesIO(encode_image(array[..., :1], "jpeg"))).mode == "L"


@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.3, 0.5]), st.sampled_from([2, 3, 4]))
@settings(max_examples=25, deadline=None)
def test_shades_are_averaged_by_a_triangle_and_cut(seed: int, above: float, times: int) -> None:
    shades = np.random.default_rng(seed).choice(np.array([0, 85, 255], np.uint8), (8 * times, 8 * times))
    scaled = np.zeros((8, 8))
    for (y, x), _ in np.ndenumerate(scaled):
        weights = np.array(
            [
                [max(0.0, 1 - abs((place + 0.5) / times - 0.5 - centre)) for place in range(8 * times)]
                for centre in (y, x)
            ]
        )
        weights /= weights.sum(axis=1, keepdims=True)
        scaled[y, x] = weights[0] @ shades @ weights[1]
    mask = np.asarray(fit_mask(Image.fromarray(shades), 8, "stretch", above))
    assert set(np.unique(mask)) <= {0, 255}
    sure = np.abs(scaled - 255 * above) > 1.5  # Pillow rounds in between
    assert np.array_equal((mask > 0)[sure], (scaled > 255 * above)[sure])


def test_shades_are_cut_without_scaling_too() -> None:
    shades = np.array([[0, 76, 77, 255]], np.uint8)
    assert np.asarray(fit_mask(Image.fromarray(shades), None, "crop", 0.3)).tolist() == [[0, 0, 255, 255]]
    assert np.asarray(fit_mask(Image.fromarray(shades), None, "crop")).tolist() == shades.tolist()


def test_thin_lines_survive_as_shades() -> None:
    line = np.zeros((64, 64), np.uint8)
    line[:, 33] = 255
    assert np.asarray(fit_mask(Image.fromarray(line), 16, "stretch", 0.01))[:, 8].all()
    assert not np.asarray(fit_mask(Image.fromarray(line), 16, "stretch")).any()
