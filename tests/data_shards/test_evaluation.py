"""Masks and images go through one evaluation geometry: a drawn square's mask lies on the square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.augment import AugmentConfig
from data_shards.build import build
from data_shards.errors import UserError
from data_shards.evaluation import image_view, mask_view, mask_views
from data_shards.loader import eval_images
from data_shards.reader import open_shards

CONFIGS = [
    AugmentConfig(size=64),
    AugmentConfig(size=64, resize=64),
    AugmentConfig(size=64, resize=96),
    AugmentConfig(size=37, channels=3),
]


def square(height: int, width: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a white rectangle off its centre on black, and the mask of it."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 4 : height // 2, 2 * width // 5 : 2 * width // 3] = 7  # a class number, not a shade
    image = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], channels, axis=2)
    return image, mask


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.size}-{c.resize}")
@pytest.mark.parametrize("shape", [(64, 64), (73, 73), (150, 90), (91, 240), (64, 100), (40, 30)], ids=str)
def test_the_mask_of_a_square_lies_on_the_square(config: AugmentConfig, shape: tuple[int, int]) -> None:
    image, mask = square(*shape)
    seen, inside = image_view(image, config), mask_view(mask, config)
    assert seen.shape == (config.size, config.size, 3)
    assert inside.any()
    assert not inside.all()
    assert np.array_equal(inside, seen[..., 0] >= 128)


def test_images_of_the_final_size_are_left_alone() -> None:
    image, mask = square(64, 64)
    assert np.array_equal(image_view(image, CONFIGS[0]), image)
    assert np.array_equal(mask_view(mask, CONFIGS[0]), mask > 0)


def test_gray_images_are_repeated_and_colours_not_dropped() -> None:
    image, _ = square(50, 40, channels=1)
    assert image_view(image, CONFIGS[0]).shape == (64, 64, 3)
    with pytest.raises(UserError, match="3 channels"):
        image_view(np.zeros((50, 40, 3), np.uint8), AugmentConfig(size=20, channels=1))


@pytest.mark.parametrize("stored", ["png", "jpeg", "as-is"])
def test_from_a_table_to_what_the_network_sees(tmp_path: Path, stored: str) -> None:
    lines = ["path,label,mask,split"]
    for number, shape in enumerate([(700, 600), (620, 900), (300, 330), (80, 80)]):
        image, mask = square(*shape)
        Image.fromarray(image).save(tmp_path / f"{number}.jpg", quality=95)
        Image.fromarray(mask).save(tmp_path / f"m{number}.png")
        lines += [f"{number}.jpg,{'ab'[number % 2]},m{number}.png,train"]
    Image.fromarray(image).save(tmp_path / "last.jpg")
    lines += ["last.jpg,a,,train"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    build(f"table:{tmp_path}/labels.csv", tmp_path / "dest", stored=stored)
    reader = open_shards(tmp_path / "dest").split("train")
    assert reader.masked_rows().tolist() == [0, 1, 2, 3]
    config = AugmentConfig(size=64, resize=72, mean=(0.0,), std=(1.0,))  # large JPEGs are decoded DCT-scaled
    images = eval_images(reader, np.arange(4), config)[:, 0].numpy() >= 128 / 255
    masks = mask_views(reader, reader.masked_rows(), config)
    for image, mask in zip(images, masks, strict=True):
        assert 2 * (image & mask).sum() / (image.sum() + mask.sum()) > 0.96
        rows, columns = (np.abs(np.argwhere(image).mean(0) - np.argwhere(mask).mean(0))).tolist()
        assert max(rows, columns) < 0.5
    with pytest.raises(UserError, match="row 4 has no mask"):
        mask_views(reader, [4], config)
