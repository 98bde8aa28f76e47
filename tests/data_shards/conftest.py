"""Small image files for the tests of data_shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[..., Path]


@pytest.fixture
def write_image() -> WriteImage:
    """Return a function that writes a random image; the content depends on the path's name only."""

    def write(path: Path, height: int = 12, width: int = 10, mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(sum(path.as_posix().encode()))
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def class_folder(tmp_path: Path, write_image: WriteImage) -> Path:
    """Return a folder train|test / a|b with four PNG images each."""
    root = tmp_path / "set"
    for split in ("train", "test"):
        for label in ("a", "b"):
            for number in range(4):
                write_image(root / split / label / f"{number}.png")
    return root
