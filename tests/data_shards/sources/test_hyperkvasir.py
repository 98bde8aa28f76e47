from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.sources.hyperkvasir import CLASSES, COUNTS, read, split
from data_shards.sources.listing import Record
from data_shards.sources.published import differences


def test_published_totals() -> None:
    assert len(CLASSES) == 23
    assert sum(train for train, _ in COUNTS.values()) == 8_567
    assert sum(test for _, test in COUNTS.values()) == 2_095


def test_the_full_list_is_split_with_the_published_counts() -> None:
    records = [Record(f"{name}/{i}.jpg", name, "") for name, counts in COUNTS.items() for i in range(sum(counts))]
    assert len(records) == 10_662
    done = split(records, 0)
    assert differences(done, COUNTS, "it") == []
    assert {record.path for record in done if record.split == "test"} != {
        record.path for record in split(records, 1) if record.split == "test"
    }


def test_a_miniature(tmp_path: Path, write_image) -> None:
    root = tmp_path / "labeled-images"
    (root).mkdir()
    (root / "image-labels.csv").write_text("Video file,Organ,Finding,Classification\n")
    places = {"cecum": "lower-gi-tract/anatomical-landmarks", "polyps": "lower-gi-tract/pathological-findings"}
    for name, place in (places | {"z-line": "upper-gi-tract/anatomical-landmarks"}).items():
        for number in range(20):
            write_image(root / place / name / f"{number}.jpg")
    write_image(root / "upper-gi-tract" / "anatomical-landmarks" / "throat" / "1.jpg")
    manifest = build(f"hyperkvasir:{tmp_path}", tmp_path / "dest", size=16)
    assert manifest.classes == CLASSES
    assert manifest.counts["test"]["cecum"] == round(20 * 176 / 1009)
    assert manifest.counts["validation"]["cecum"] == 2
    text = " ".join(manifest.warnings)
    assert "60 images found, the published list counts 10,662 (8,567 train, 2,095 test)" in text
    assert (
        "1 folders are not one of the 23 classes and were left out: upper-gi-tract/anatomical-landmarks/throat" in text
    )


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labeled-images/<tract>"):
        read(tmp_path)
