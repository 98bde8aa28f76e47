from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources.digits import read


def test_split_is_60_20_20_in_every_class() -> None:
    counts = read().counts()
    assert {split: sum(classes.values()) for split, classes in counts.items()} == {
        "train": 1079,
        "validation": 359,
        "test": 359,
    }
    for name in "0123456789":
        total = sum(classes[name] for classes in counts.values())
        assert counts["test"][name] == counts["validation"][name] == round(0.2 * total)


def test_labels_and_pixels_are_scikit_learns(tmp_path: Path) -> None:
    build("digits", tmp_path / "d", size=8)
    scans = load_digits()
    for split in ("train", "validation", "test"):
        reader = open_shards(tmp_path / "d").split(split)
        assert np.array_equal(reader.labels, scans.target[reader.sample_ids])
        expected = scans.images[reader.sample_ids] * 255 / 16
        assert np.abs(reader.images(range(len(reader)))[..., 0] - expected).max() <= 0.5


def test_no_path() -> None:
    with pytest.raises(UserError, match="no path"):
        read(Path("/tmp"))
