from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_shards.errors import UserError
from data_shards.keyed import generator
from data_shards.shapes import Branches, disc_mask, grow, rasterise, vessel_mask

SIZES = st.integers(64, 300)
KEYS = st.integers(0, 10**6)


@given(KEYS, KEYS, SIZES)
@settings(max_examples=40, deadline=None)
def test_vessels_have_the_share_of_published_priors(seed: int, index: int, size: int) -> None:
    mask = vessel_mask(seed, index, size)
    assert (mask.shape, mask.dtype, set(np.unique(mask))) == ((size, size), np.uint8, {0, 255})
    assert 0.03 <= (mask > 0).mean() <= 0.11


@given(KEYS, KEYS, SIZES)
@settings(max_examples=40, deadline=None)
def test_a_disc_is_one_round_thing_inside_the_mask(seed: int, index: int, size: int) -> None:
    mask = disc_mask(seed, index, size) > 0
    assert ndimage.label(mask)[1] == 1
    assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    assert 0.008 < mask.mean() < 0.08
    values, _ = np.linalg.eigh(np.cov(np.argwhere(mask).T))
    assert values[1] / values[0] < 1.4**2
    # an ellipse of these moments has the area of the mask
    assert mask.sum() == pytest.approx(4 * np.pi * np.sqrt(values.prod()), rel=0.05)


def test_masks_are_functions_of_seed_index_and_size() -> None:
    for make in (vessel_mask, disc_mask):
        assert np.array_equal(make(1, 2, 96), make(1, 2, 96))
        others = [make(1, 3, 96), make(2, 2, 96)]
        assert all(not np.array_equal(make(1, 2, 96), other) for other in others)
    near = vessel_mask(1, 2, 192).reshape(96, 2, 96, 2).mean(axis=(1, 3)) > 127
    assert (near & (vessel_mask(1, 2, 96) > 0)).sum() > 0.5 * near.sum()  # the same tree, finer


def test_vessels_branch_and_taper() -> None:
    tree = grow(generator(0), np.full((3, 2), 0.5), np.arange(3.0), length=0.4, width=0.03, generations=3)
    assert tree.points.shape[:2] == tree.widths.shape == (3 + 6 + 12, tree.points.shape[1])
    assert (np.diff(tree.widths, axis=1) < 0).all()
    places = tree.points.reshape(-1, 2)
    for child in range(3, 21):
        parents = np.arange(3) if child < 9 else np.arange(3, 9)
        starts = tree.points[parents].reshape(-1, 2)
        assert np.abs(starts - tree.points[child, 0]).sum(axis=1).min() < 1e-12
        assert tree.widths[child, 0] < tree.widths[parents].max()
    assert len(np.unique(places.round(9), axis=0)) > 3 * 10


def test_lines_are_as_wide_as_they_say() -> None:
    line = Branches(np.stack([np.linspace(0.1, 0.9, 12), np.full(12, 0.5)], axis=1)[None], np.full((1, 12), 0.05))
    for size in (100, 400):
        for thickness in (1.0, 2.0):
            assert (rasterise(line, size, thickness) > 0).mean() == pytest.approx(0.8 * 0.05 * thickness, rel=0.2)


@pytest.mark.parametrize("size", [0, 63, 5000])
def test_wrong_sizes(size: int) -> None:
    with pytest.raises(UserError, match="64 to 4096 pixels"):
        vessel_mask(0, 0, size)
