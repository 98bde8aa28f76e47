from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_shards.errors import UserError
from data_shards.sources.folder import read


def test_split_level(class_folder: Path, write_image) -> None:
    write_image(class_folder / "val" / "b" / "deep" / "x.jpg")
    write_image(class_folder / "val" / "b" / "._x.jpg.png")
    write_image(class_folder / ".cache" / "c" / "x.png")
    (class_folder / "train" / "b" / "notes.txt").write_text("x")
    listing = read(class_folder)
    assert listing.classes == ("a", "b")
    assert listing.counts() == {
        "test": {"a": 4, "b": 4},
        "train": {"a": 4, "b": 4},
        "validation": {"a": 0, "b": 1},
    }
    assert listing.records[-1].path == "val/b/deep/x.jpg"
    assert listing.warnings == ()


def test_without_split_level(class_folder: Path, write_image) -> None:
    for number in range(20):
        write_image(class_folder / "train" / "c" / f"{number}.png")
    listing = read(class_folder / "train", validation=0.25, test=0.5)
    assert listing.counts()["test"] == {"a": 2, "b": 2, "c": 10}
    assert listing.counts()["validation"] == {"a": 1, "b": 1, "c": 5}
    assert read(class_folder / "train", seed=1).records != read(class_folder / "train").records


def test_groups(tmp_path: Path, write_image) -> None:
    for patient in range(10):
        for number in range(3):
            write_image(tmp_path / "x" / f"p{patient}" / f"{patient}_{number}.png")
    by_parent = read(tmp_path, group="parent", test=0.2).records
    assert Counter(record.group for record in by_parent) == {f"p{i}": 3 for i in range(10)}
    assert len({(record.group, record.split) for record in by_parent}) == 10
    assert {record.group for record in read(tmp_path, group="2").records} == {f"{i}_" for i in range(10)}
    with pytest.raises(UserError, match="group=patient is unknown"):
        read(tmp_path, group="patient")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No images under .*CLASS/image\.jpg"):
        read(tmp_path)
