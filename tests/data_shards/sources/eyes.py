"""Small fundus photographs and masks, in whatever format a file name asks for."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 90
CENTRE, RADIUS = (30, 40), 26  # of the field of view
BOX = (0, 60, 0, 83)  # its bounding box and a margin of 16 pixels, top, bottom, left, right


def eye(number: int) -> np.ndarray:
    """Return a round field of view, a corner that is lit, and a black rest, (60, 90, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.random.default_rng(number).integers(0, 8, (HEIGHT, WIDTH, 3))
    image[np.hypot(y - CENTRE[0], x - CENTRE[1]) <= RADIUS] += [180, 90, 40]
    image[:4, -4:] = 255
    return image.astype(np.uint8)


def drawn(number: int) -> np.ndarray:
    """Return a mask, (60, 90) of bool: a cross that moves with the number."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20 + number % 20] = mask[:, 25 + number % 30] = True
    return mask


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    """Write an image; NAME.ppm.gz is packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        options = {"quality": 98, "subsampling": 0}
    if path.suffix == ".gz":
        plain = path.with_suffix("")
        image.save(plain, **options)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    else:
        image.save(path, **options)
    return path
