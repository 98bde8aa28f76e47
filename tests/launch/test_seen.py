"""Where the pixels of an evaluation image come from: there and back, through fits, resizes and crops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.augment import AugmentConfig, centre_box
from data_shards.evaluation import image_view
from data_shards.fitting import fit_image, fitted_box
from launch.seen import Seen, _inside


def spot(image: np.ndarray) -> tuple[float, float]:
    """Return the centre of mass (x, y) of what is bright."""
    weight = image[..., 0].astype(float)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (100, 100)])
@pytest.mark.parametrize("resize", [40, 56])
def test_a_spot_is_where_the_box_says(fit: str, height: int, width: int, resize: int) -> None:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[height // 2 - 9 : height // 2 + 2, width // 2 - 4 : width // 2 + 13] = 255
    stored = fit_image(image, 48, fit)
    config = AugmentConfig(size=40, resize=resize)
    pixels = image_view(stored, config)
    box = _inside(fitted_box(width, height, 48, fit), centre_box(config, 48, 48), 48, 48)
    found = Seen(pixels, "it", box).original(*spot(pixels))
    assert found == pytest.approx(spot(image), abs=0.6)


@given(
    st.tuples(*(st.floats(-50, 400) for _ in range(4))).filter(lambda b: b[2] - b[0] > 1 and b[3] - b[1] > 1),
    st.floats(-10, 80),
    st.floats(-10, 80),
)
def test_there_and_back(box: tuple[float, float, float, float], x: float, y: float) -> None:
    image = Seen(np.zeros((64, 64, 1), dtype=np.uint8), "it", box)
    assert image.evaluated(*image.original(x, y)) == pytest.approx((x, y), abs=1e-6)
