"""Coarse maps at full size: where a coarse pixel lies, and maps of one value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.segmentation.maps import full_size, scaled, upsampled


def bilinear(coarse: np.ndarray, size: int) -> np.ndarray:
    """Interpolate one (h, w) map slowly: pixel centres of both grids over the same square, edges repeated."""
    out = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = ((p + 0.5) * n / size - 0.5 for p, n in ((i, coarse.shape[0]), (j, coarse.shape[1])))
            y, x = max(y, 0.0), max(x, 0.0)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, coarse.shape[0] - 1), min(x0 + 1, coarse.shape[1] - 1)
            dy, dx = y - y0, x - x0
            top = (1 - dx) * coarse[y0, x0] + dx * coarse[y0, x1]
            out[i, j] = (1 - dy) * top + dy * ((1 - dx) * coarse[y1, x0] + dx * coarse[y1, x1])
    return out


@pytest.mark.parametrize(("shape", "size"), [((4, 4), 16), ((7, 7), 50), ((3, 5), 12), ((6, 6), 6)])
def test_upsampling_is_bilinear_between_pixel_centres(shape: tuple[int, int], size: int) -> None:
    coarse = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    expected = np.stack([bilinear(one.numpy(), size) for one in coarse])
    np.testing.assert_allclose(upsampled(coarse, size), expected, atol=1e-5)


def test_each_map_is_stretched_over_its_own_range() -> None:
    maps = torch.rand(5, 8, 8) * torch.tensor([1.0, 1e-3, 40.0, 3.0, 0.1])[:, None, None] + 2
    found = scaled(maps, "minmax")
    assert found.amin((1, 2)).tolist() == [0.0] * 5
    assert found.amax((1, 2)).tolist() == [1.0] * 5
    for one, before in zip(found, maps, strict=True):
        assert torch.equal(one.ravel().argsort(), before.ravel().argsort())
    assert torch.equal(scaled(maps, "none"), maps)


def test_a_map_of_one_value_becomes_nothing() -> None:
    assert not full_size(torch.full((2, 4, 4), 0.7), 16, "minmax").any()
    torch.testing.assert_close(full_size(torch.full((2, 4, 4), 0.7), 16, "none"), torch.full((2, 16, 16), 0.7))


def test_zero_and_one_are_reached_at_full_size() -> None:
    found = full_size(torch.rand(3, 4, 4), 64, "minmax")
    assert (found.amin((1, 2)) == 0).all()
    assert (found.amax((1, 2)) == 1).all()
