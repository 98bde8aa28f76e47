"""A run on digits with untrained weights, patients in its shards, and its index; what is searched for in it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data_shards.build import build
from tests.launch.best_run import best_run

SIZE = 16
DATA = {"image_size": SIZE, "channels": 1, "mean": [0.3], "std": [0.3]}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 120 digits as PNG files and images.csv, which gives three images to a patient."""
    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    with (folder / "images.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label", "split", "group"])
        for i in range(120):
            pixels = np.kron((bunch.images[i] * 15).astype(np.uint8), np.ones((2, 2), np.uint8))
            Image.fromarray(pixels).save(folder / f"{i:03d}.png")
            split = ("train", "train", "train", "validation", "test")[i // 3 % 5]
            table.writerow([f"{i:03d}.png", f"digit {bunch.target[i]}", split, f"patient {i // 3}"])
    return folder


@pytest.fixture(scope="session")
def shards(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "patients"
    build(f"table:{files / 'images.csv'}", folder, size=SIZE)
    return folder


@pytest.fixture(scope="session")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with an exact index of its training split; only read."""
    from launch.retrieval.indexing import make_index

    folder = best_run(tmp_path_factory.mktemp("runs") / "run", shards, SIZE, data=DATA)
    make_index(folder, None, ("train",), "auto", folder / "index", tell=lambda line: None)
    return folder
