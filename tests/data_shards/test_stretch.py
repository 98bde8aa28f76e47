"""Stretched images are those of a slow loop and of grid_sample; their bits know neither the batch nor its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from data_shards import stretch
from data_shards.augment_batch import sampling_grid
from data_shards.stretch import Floats, ordered, planes

PADDINGS = ("reflection", "border", "zeros")
SHAPES = [(21, 21), (24, 17), (9, 30)]
SIZE = 21


def random_images(num: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Return (B, C, H, W) uint8 in the order of memory that shards have."""
    pixels = np.random.default_rng(1).integers(0, 256, (num, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def random_matrices(num: int, largest: float = 2.5, shift: float = 1.5) -> Floats:
    """Return (B, 3, 3) of zooms, flips and shifts, that look far beyond the edges."""
    rng = np.random.default_rng(2)
    matrices = np.zeros((num, 3, 3))
    for axis in (0, 1):
        matrices[:, axis, axis] = rng.uniform(0.3, largest, num) * rng.choice([-1, 1], num)
        matrices[:, axis, 2] = rng.uniform(-shift, shift, num)
    matrices[:, 2, 2] = 1
    return matrices


def whole(images: torch.Tensor, matrices: Floats, padding: str, scale: Floats | None = None) -> torch.Tensor:
    scale = np.ones(images.shape[1]) if scale is None else scale
    out = torch.full((len(images), len(scale), SIZE, SIZE), math.nan)
    for part, channel, floats in planes(images, matrices, scale, SIZE, padding):
        out[part, channel] = floats
    return out


def pixel(line: list[float], place: float, padding: str) -> float:
    """Return the value at a place between pixels of a line; two of three paddings as recursions."""
    last = len(line) - 1
    if padding == "reflection" and place < -0.5:
        return pixel(line, -1 - place, padding)
    if padding == "reflection" and place > last + 0.5:
        return pixel(line, 2 * last + 1 - place, padding)
    if padding != "zeros":
        place = min(max(place, 0.0), float(last))
    low = math.floor(place)
    shares = ((low, 1 - (place - low)), (low + 1, place - low))
    return sum(share * line[i] for i, share in shares if 0 <= i <= last)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_slow_loop_gives_the_same(padding: str, shape: tuple[int, int]) -> None:
    (height, width), matrices = shape, random_matrices(3)
    images = random_images(3, 2, height, width)
    found = whole(images, matrices, padding)
    for i, m in enumerate(matrices):
        for channel in range(2):
            rows = images[i, channel].double().tolist()
            for y in range(SIZE):
                across = ((m[1, 1] * ((2 * y + 1) / SIZE - 1) + m[1, 2] + 1) * height - 1) / 2
                line = [pixel([row[x] for row in rows], across, padding) for x in range(width)]
                for x in range(SIZE):
                    along = ((m[0, 0] * ((2 * x + 1) / SIZE - 1) + m[0, 2] + 1) * width - 1) / 2
                    assert abs(found[i, channel, y, x].item() - pixel(line, along, padding)) < 1e-3


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_grid_sample_gives_the_same(padding: str, shape: tuple[int, int]) -> None:
    images, matrices = random_images(40, 3, *shape), random_matrices(40)
    grid = sampling_grid(matrices, SIZE)
    expected = functional.grid_sample(images.float(), grid, "bilinear", padding, align_corners=False)
    assert (whole(images, matrices, padding) - expected).abs().max() < 5e-3  # its coordinates are float32


def test_flips_and_whole_pixels_mix_nothing() -> None:
    images, matrices = random_images(2, 3, SIZE, SIZE), np.stack([np.diag([-1.0, 1, 1]), np.diag([1.0, -1, 1])])
    matrices[1, 0, 2] = 2 * 3 / SIZE  # three pixels to the left
    moved = functional.pad(images[1].flip(1)[:, :, 3:].float(), (0, 3))
    expected = torch.stack([images[0].flip(2).float(), moved])
    assert (whole(images, matrices, "zeros") - expected).abs().max() < 1e-9  # weights of 1e-15 of the neighbours


@pytest.mark.parametrize("padding", PADDINGS)
def test_an_image_gives_the_same_bits_alone_in_a_batch_in_parts_and_with_more_threads(
    padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, matrices, before = random_images(24, 3, 24, 17), random_matrices(24), torch.get_num_threads()
    together = whole(images, matrices, padding)
    for rows in ([0], [5], [23, 5, 11], list(range(23, -1, -1))):
        assert torch.equal(whole(images[rows], matrices[rows], padding), together[rows])
    torch.set_num_threads(2)
    try:
        assert torch.equal(whole(images, matrices, padding), together)
    finally:
        torch.set_num_threads(before)
    for cells in (1, 5 * 24 * 21):
        monkeypatch.setattr(stretch, "_CELLS", cells)
        assert torch.equal(whole(images, matrices, padding), together)


def test_planes_are_scaled_and_one_channel_makes_several() -> None:
    images, matrices, scale = random_images(4, 1, 24, 17), random_matrices(4), np.array([1.0, 0.25, -3.0])
    found, alone = whole(images, matrices, "border", scale), whole(images, matrices, "border")
    assert torch.allclose(found, alone * torch.tensor(scale).float()[:, None, None], rtol=1e-5, atol=1e-4)


def test_no_images_are_no_planes() -> None:
    assert list(planes(random_images(0, 3, 5, 5), random_matrices(0), np.ones(3), SIZE, "border")) == []


def test_ordered_memory_holds_the_same_values() -> None:
    images = random_images(2, 3, 4, 5)
    assert not images.is_contiguous()
    assert ordered(images).is_contiguous()
    assert torch.equal(ordered(images), images)
