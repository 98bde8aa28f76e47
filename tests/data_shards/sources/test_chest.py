from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build import REJECTED_NAME, build
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources.chest import SETS, read
from data_shards.verify import verify

PARTS = ("heart", "left lung", "right lung", "left clavicle", "right clavicle")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def jsrt_lists(root: Path) -> None:
    """Touch the 247 scans and their masks: the odd ones are in fold1."""
    names = [f"JPCLN{n:03d}" for n in range(1, 155)] + [f"JPCNN{n:03d}" for n in range(1, 94)]
    for number, name in enumerate(names):
        touch(root / "All247images" / f"{name}.IMG")
        for part in PARTS:
            touch(root / "scratch" / f"fold{1 + number % 2}" / "masks" / part / f"{name}.gif")


@pytest.mark.parametrize("target", ["lung", "heart", "clavicle"])
def test_the_full_list_of_jsrt_is_split_as_published(tmp_path: Path, target: str) -> None:
    jsrt_lists(tmp_path)
    listing = read(tmp_path, target=target)
    assert listing.warnings == ()
    assert {split: of["chest"] for split, of in listing.counts().items()} == {
        "train": 100,
        "validation": 24,
        "test": 123,
    }
    assert (listing.name, listing.default_size) == ("jsrt_scr", 512)
    assert {len(record.beside) for record in listing.records} == {1 if target == "heart" else 2}


def scan(number: int) -> np.ndarray:
    """Return (2048, 2048) big-endian numbers: a slope with a bright, that is low, square."""
    values = np.tile(np.arange(2048) + 1000, (2048, 1)).astype(">i2")
    values[:512, : 512 + number] = 100
    return values


def jsrt(root: Path) -> None:
    """Write two scans for training and two for the test."""
    for number, name in enumerate(("JPCLN001", "JPCLN002", "JPCNN001", "JPCNN002")):
        folder = root / "scratch" / f"fold{1 + number % 2}" / "masks"
        for place, part in enumerate(PARTS):
            mask = np.zeros((1024, 1024), np.uint8)
            mask[200 * place : 200 * place + 100, :256] = 255
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(folder / part / f"{name}.gif")
        (root / "All247images").mkdir(exist_ok=True)
        (root / "All247images" / f"{name}.IMG").write_bytes(scan(number).tobytes())


def test_jsrt_is_inverted_stretched_and_has_both_lungs(tmp_path: Path) -> None:
    jsrt(tmp_path / "set")
    options = {"validation": 0}
    manifest = build(f"chest:{tmp_path / 'set'}", tmp_path / "dest", size=256, options=options)
    assert (manifest.channels, manifest.rejected, manifest.classes) == (1, 0, ("chest",))
    train = open_shards(tmp_path / "dest").split("train")
    assert [train.path(row) for row in range(2)] == ["All247images/JPCLN001.IMG", "All247images/JPCNN001.IMG"]
    image, mask = train.image(0)[..., 0].astype(int), train.mask(0)
    assert image[:60, :60].min() == 255  # the lowest number is the brightest
    expected = 255 * (1000 + 2047 - (1000 + 8 * np.arange(256) + 3.5)) / (1000 + 2047 - 100)
    assert np.abs(image[200] - expected).max() <= 1
    lungs = np.zeros((256, 256), bool)
    lungs[50:75, :64] = lungs[100:125, :64] = True
    assert ((mask > 0) == lungs).mean() > 0.99
    assert verify(tmp_path / "dest") == []


def test_broken_scans_and_masks_are_lines(tmp_path: Path) -> None:
    root = tmp_path / "set"
    jsrt(root)
    (root / "All247images" / "JPCLN001.IMG").write_bytes(b"short")
    (root / "All247images" / "JPCNN001.IMG").write_bytes(bytes(2 * 2048 * 2048))
    Image.new("L", (1000, 1000)).save(root / "scratch" / "fold2" / "masks" / "heart" / "JPCLN002.gif")
    touch(root / "All247images" / "JPCLN003.IMG")
    manifest = build(f"chest:{root}", tmp_path / "dest", size=64, options={"target": "heart"})
    with open(tmp_path / "dest" / REJECTED_NAME, newline="") as stream:
        reasons = {Path(row["path"]).stem: row["reason"] for row in csv.DictReader(stream)}
    assert reasons == {
        "JPCLN001": "5 bytes; a raw scan of 2048 x 2048 pixels has 8,388,608",
        "JPCNN001": "all pixels of the scan are equal",
        "JPCLN002": "a mask of 1000 x 1000 pixels does not fit a scan of 2048",
    }
    assert "1 scan(s) were left out, without a mask of heart: JPCLN003.IMG." in manifest.warnings


def cxr8(root: Path, num_patients: int) -> None:
    for number in range(1, num_patients + 1):
        for study in range(2):
            file = root / f"images_{1 + number % 2:03d}" / "images" / f"{number:08d}_{study:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mode = "RGBA" if number == 1 else "L"  # as some hundred files are
            Image.new(mode, (20, 20), number if mode == "L" else (1, 1, 1, 255)).save(file)
    (root / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\n")


def test_cxr8_is_stored_as_it_is_in_gray(tmp_path: Path) -> None:
    cxr8(tmp_path / "set", 20)
    Image.new("L", (9, 9)).save(tmp_path / "set" / "logo.png")
    manifest = build(f"chest:{tmp_path / 'set'}", tmp_path / "dest")
    assert (manifest.stored, manifest.channels, manifest.has_masks) == ("as-is", 1, False)
    assert {split: manifest.num_rows(split) for split in manifest.splits} == {"train": 36, "validation": 4}
    train = open_shards(tmp_path / "dest").split("train")
    numbers = [int(train.path(row).split("/")[-1][:8]) for row in range(len(train))]
    assert [train.image(row).max() for row in range(len(train))] == numbers
    listing = read(tmp_path / "set", set="cxr8")
    assert len({(r.group, r.split) for r in listing.records}) == 20
    assert "40 images found, the published cxr8 (none) counts 112,120" in listing.warnings[0]
    assert "1 image(s) were left out, not called like those of ChestX-ray8: logo.png." in listing.warnings


def test_patients_of_cxr8_may_be_taken_in_order(tmp_path: Path) -> None:
    cxr8(tmp_path, 10)
    records = read(tmp_path, draw="first", validation=0.25).records
    validation = [record.group for record in records if record.split == "validation"]
    assert validation == ["00000002", "00000002", "00000004", "00000004"]  # not one of two images of the next


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is not one of jsrt_scr, siim_acr, cxr8 as published"),
        ({"set": "cxr8"}, "is not cxr8 as published"),
        ({"set": "cxr14"}, r"set=cxr14 is unknown \(did you mean 'cxr8'\?\)"),
    ],
)
def test_wrong_folders_and_sets(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **options)


def test_wrong_targets(tmp_path: Path) -> None:
    assert [*SETS] == ["jsrt_scr", "siim_acr", "cxr8"]
    (tmp_path / "fold1" / "masks").mkdir(parents=True)
    with pytest.raises(UserError, match=r"jsrt_scr has no target 'lungs' \(did you mean 'lung'\?\); use lung, heart"):
        read(tmp_path, target="lungs")
    with pytest.raises(UserError, match="looks like jsrt_scr, but has no image for the target lung"):
        read(tmp_path)
