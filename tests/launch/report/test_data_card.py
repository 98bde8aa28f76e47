"""The data card against what the shards were built from."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build import build
from launch.report.data_card import data_card, rejected_reasons
from tests.launch.report.test_tables import run_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build 24 images of two classes and twelve patients, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("card")
    with (folder / "images.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label", "split", "group"])
        for i in range(24):
            pixels = np.full((12, 12), 10 * i, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:02d}.png")
            split = ("train", "train", "validation", "test")[i // 2 % 4]
            table.writerow([f"{i:02d}.png", "common" if i % 3 else "rare", split, f"patient {i // 2}"])
    for i in (0, 1):
        (folder / f"{i:02d}.png").write_bytes(b"not an image")
    build(f"table:{folder / 'images.csv'}", folder / "shards", size=8)
    return folder / "shards"


def test_counts_groups_and_what_was_rejected(shards: Path) -> None:
    found = data_card(run_of(config={"data": {"shards": str(shards)}}))
    assert found is not None
    assert found["splits"] == ["train", "validation", "test"]
    assert found["totals"] == ["10", "6", "6"]
    rows = {name: [int(size) for size in sizes] for name, sizes in found["rows"]}
    assert set(rows) == {"common", "rare"}
    assert [sum(column) for column in zip(*rows.values(), strict=True)] == [10, 6, 6]
    assert sum(rows["rare"]) == 7  # of eight every third is rare; the first cannot be read
    assert found["groups"] == ["5", "3", "3"]
    assert found["rejected"] == 2
    assert sum(number for _, number in found["reasons"]) == 2
    assert found["hidden"] == 0
    assert "2 classes, 8 pixels, gray" in found["title"]


def test_without_shards_there_is_no_card(tmp_path: Path) -> None:
    assert data_card(run_of(config={"data": {"shards": "nowhere"}})) is None
    assert data_card(run_of()) is None
    assert rejected_reasons(tmp_path) == []
