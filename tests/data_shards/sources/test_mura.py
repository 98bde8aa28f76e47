from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.sources.mura import CLASSES, COUNTS, read, record_of
from data_shards.sources.published import differences

PARTS = ("ELBOW", "FINGER", "FOREARM", "HAND", "HUMERUS", "SHOULDER", "WRIST")


def test_published_totals_and_order() -> None:
    assert sum(train for train, _ in COUNTS.values()) == 36_808
    assert sum(test for _, test in COUNTS.values()) == 3_197
    assert tuple(f"{part.lower()}-{sign}" for part in PARTS for sign in ("negative", "positive")) == CLASSES


def test_the_full_list_agrees_with_the_published_counts() -> None:
    names = [
        f"{side}/XR_{name.split('-')[0].upper()}/patient{i:05d}/study1_{name.split('-')[1]}/image1.png"
        for name, counts in COUNTS.items()
        for side, num in zip(("train", "valid"), counts, strict=True)
        for i in range(num)
    ]
    records = [record_of(name) for name in names]
    assert len(records) == 40_005
    assert differences([record for record in records if record], COUNTS, "it") == []


@pytest.mark.parametrize(
    "name",
    ["train/XR_SKULL/patient1/study1_negative/a.png", "train/XR_HAND/image1.png", "test/XR_HAND/patient1/s/a.png"],
)
def test_foreign_paths(name: str) -> None:
    assert record_of(name) is None


def test_a_miniature(tmp_path: Path, write_image) -> None:
    root = tmp_path / "MURA-v1.1"
    for side, num_patients in (("train", 30), ("valid", 4)):
        for part in PARTS[:2]:
            for patient in range(1, num_patients + 1):
                for sign in ("negative", "positive"):
                    study = root / side / f"XR_{part}" / f"patient{patient:05d}" / f"study1_{sign}"
                    write_image(study / "image1.png", mode="L")
                    (study / "._image1.png").write_bytes(b"left over by another system")
    write_image(root / "train" / "XR_SKULL" / "patient00001" / "study1_negative" / "image1.png")
    manifest = build(f"mura:{tmp_path}", tmp_path / "dest", size=16)
    assert (manifest.rejected, manifest.channels, manifest.num_rows("test")) == (0, 1, 16)
    assert manifest.num_rows("validation") == 12
    text = " ".join(manifest.warnings)
    assert "136 images found, the official v1.1 set counts 40,005 (36,808 train, 3,197 test)" in text
    assert "1 files lie where MURA has no images" in text
    listing = read(root)
    sides: dict[str, set[str]] = {}
    for record in listing.records:
        sides.setdefault(record.group, set()).add(record.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert len(sides) == 34


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folders train and valid"):
        read(tmp_path)
