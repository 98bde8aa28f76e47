from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from data_shards.build import REJECTED_NAME, build
from data_shards.errors import UserError
from data_shards.sources.kaggle_dr import read
from tests.data_shards.sources.eyes import eye, save


def publish(root: Path, num_patients: int) -> Path:
    for patient in range(10, 10 + num_patients):
        for side in ("left", "right"):
            save(root / "train" / f"{patient}_{side}.jpeg", eye(patient))
    (root / "trainLabels.csv").write_text("image,level\n10_left,0\n")
    return root


def test_a_miniature(tmp_path: Path) -> None:
    root = publish(tmp_path / "set", 20)
    save(root / "train" / "10_left.jpeg", np.zeros((60, 90, 3), np.uint8))
    small = np.zeros((60, 90, 3), np.uint8)
    small[10:30, 10:60] = 200  # 1000 of 5400 pixels
    save(root / "train" / "11_left.jpeg", small)
    (root / "train" / "12_left.jpeg").write_bytes(b"no")
    save(root / "sample.jpeg", eye(0))
    manifest = build(f"kaggle_dr:{root}", tmp_path / "dest")
    assert (manifest.image_size, manifest.fit, manifest.classes) == (512, "stretch", ("fundus",))
    assert manifest.has_masks is False and manifest.splits == ("train", "validation")
    with open(tmp_path / "dest" / REJECTED_NAME, newline="") as stream:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    assert reasons["train/10_left.jpeg"].startswith("no field of view")
    assert reasons["train/11_left.jpeg"].startswith("the field of view is ")
    assert set(reasons) == {f"train/{n}_left.jpeg" for n in (10, 11, 12)}
    assert "1 image(s) were left out, not called like eyes: sample.jpeg." in manifest.warnings


def test_eyes_of_a_patient_are_in_one_split(tmp_path: Path) -> None:
    listing = read(publish(tmp_path, 30))
    splits = {(record.group, record.split) for record in listing.records}
    assert len(splits) == 30
    assert listing.counts()["validation"]["fundus"] == 6


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected 10_left"):
        read(tmp_path)
