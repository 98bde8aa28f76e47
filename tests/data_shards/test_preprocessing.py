"""The way of an image to a network, by itself, against the shards and against its own description."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.augment import AugmentConfig
from data_shards.build import build
from data_shards.decode import load_image
from data_shards.evaluation import image_view
from data_shards.preprocessing import Preprocessing
from data_shards.reader import open_shards


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [24, None])
def test_a_file_is_seen_as_from_the_shards(tmp_path: Path, fit: str, size: int | None) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for number in range(3):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (40, 31, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    options = {"validation": 0, "test": 0}
    manifest = build(f"folder:{tmp_path / 'images'}", tmp_path / "shards", size=size, fit=fit, options=options)
    view = AugmentConfig(size=16, resize=18)
    steps = Preprocessing(manifest.channels, manifest.image_size, manifest.fit, view)
    reader = open_shards(tmp_path / "shards").split("train")
    for row in range(len(reader)):
        data = (tmp_path / "images" / reader.path(row)).read_bytes()
        assert np.array_equal(steps(load_image(data, steps.channels)), image_view(reader.image(row), view))


def test_the_description_has_every_number() -> None:
    told = Preprocessing(1, 32, "pad", AugmentConfig(size=28, channels=3)).described()
    assert (told["channels"], told["network_channels"], told["fit"], told["fit_size"]) == (1, 3, "pad", 32)
    assert (told["size"], told["resize"], told["mean"]) == (28, None, [0.485, 0.456, 0.406])
    words = " ".join(told["steps"])
    assert "repeated to 3" in words and "all on black to 32 x 32" in words and "32 if it is that long, else 28" in words
