"""Miniatures of the retinal sets, under the names and in the formats of their publishers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build import REJECTED_NAME, build
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources.retina import read
from data_shards.sources.retina_sets import SETS
from data_shards.verify import verify
from tests.data_shards.sources.eyes import BOX, drawn, eye, save

Write = Callable[[Path, np.ndarray], object]
ALL = [(name, target) for name, kind in SETS.items() for target in kind.counts]


def touch(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def white(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 255, 0).astype(np.uint8)


def drive(root: Path, write: Write, masks: str = "1st_manual", suffix: str = "manual1.gif") -> None:
    for folder, first in (("training", 21), ("test", 1)):
        for n in range(first, first + 20):
            write(root / folder / "images" / f"{n:02d}_{folder}.tif", eye(n))
            write(root / folder / masks / f"{n:02d}_{suffix}", white(drawn(n)))
            write(root / folder / "mask" / f"{n:02d}_{folder}_mask.gif", white(eye(n).max(axis=2) > 20))


def rite(root: Path, write: Write) -> None:
    drive(root / "AV_groundTruth", write, "vessel", "training.png")


STARE = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)


def stare(root: Path, write: Write) -> None:
    for n in STARE:
        write(root / "stare-images" / f"im{n:04d}.ppm.gz", eye(n))
        write(root / "labels-ah" / f"im{n:04d}.ah.ppm.gz", np.repeat(white(drawn(n))[..., None], 3, axis=2))


def chase_db1(root: Path, write: Write) -> None:
    for n in range(1, 15):
        for side in "LR":
            write(root / f"Image_{n:02d}{side}.jpg", eye(n))
            write(root / f"Image_{n:02d}{side}_1stHO.png", drawn(n))
            write(root / f"Image_{n:02d}{side}_2ndHO.png", ~drawn(n))


def hrf(root: Path, write: Write) -> None:
    for kind in ("dr", "g", "h"):
        for n in range(1, 16):
            write(root / "images" / f"{n:02d}_{kind}.{'jpg' if kind == 'h' else 'JPG'}", eye(n))
            write(root / "manual1" / f"{n:02d}_{kind}.tif", white(drawn(n)))


def drishti_gs(root: Path, write: Write) -> None:
    top = root / "Drishti-GS1_files"
    for n in range(1, 102):
        folder, truth = ("Training", "GT") if n % 2 == 0 else ("Test", "Test_GT")
        name = f"drishtiGS_{n:03d}"
        write(top / folder / "Images" / f"{name}.png", eye(n))
        for part, times in (("ODseg", 1), ("cupseg", 2)):
            soft = (drawn(n) * 63 * (1 + np.arange(90) % (2 * times)) / times).astype(np.uint8)
            write(top / folder / truth / name / "SoftMap" / f"{name}_{part}Softmap.png", soft)


LESIONS = {
    "1. Microaneurysms": ("MA", set()),
    "2. Haemorrhages": ("HE", {7}),
    "3. Hard Exudates": ("EX", set()),
    "4. Soft Exudates": ("SE", set(range(1, 29)) | set(range(60, 73))),
    "5. Optic Disc": ("OD", set()),
}


def idrid(root: Path, write: Write) -> None:
    top = root / "A. Segmentation"
    for n in range(1, 82):
        folder = "a. Training Set" if n <= 54 else "b. Testing Set"
        write(top / "1. Original Images" / folder / f"IDRiD_{n:02d}.jpg", eye(n))
        for part, (letters, healthy) in LESIONS.items():
            if n not in healthy:
                red = np.where(drawn(n)[..., None], np.array([255, 0, 0], np.uint8), np.uint8(0))
                truth = top / "2. All Segmentation Groundtruths" / folder / part
                write(truth / f"IDRiD_{n:02d}_{letters}.tif", red)


LAYOUTS = {f.__name__: f for f in (drive, rite, stare, chase_db1, hrf, drishti_gs, idrid)}


@pytest.mark.parametrize(("name", "target"), ALL)
def test_full_lists_have_the_published_counts(tmp_path: Path, name: str, target: str) -> None:
    LAYOUTS[name](tmp_path, touch)
    listing = read(tmp_path, target=target)
    assert (listing.name, listing.classes) == (name, ("fundus",))
    counts = {split: sum(of.values()) for split, of in listing.counts().items()}
    train, test = SETS[name].counts[target]
    assert counts == {"train": train - train // 5, "validation": train // 5, "test": test}
    assert not [note for note in listing.warnings if "counts" in note]
    first = sorted(r.path for r in listing.records if r.split != "test")[: train // 5]
    assert first == sorted(r.path for r in listing.records if r.split == "validation")
    assert len({record.path for record in listing.records}) == train + test


def test_published_counts_are_those_of_the_papers() -> None:
    totals = {name: [sum(counts) for counts in kind.counts.values()] for name, kind in SETS.items()}
    assert totals == {
        "drive": [40],
        "rite": [40],
        "stare": [20],
        "chase_db1": [28],
        "hrf": [45],
        "drishti_gs": [101, 101],
        "idrid": [81, 81, 81, 80, 40],
    }


@pytest.mark.parametrize("name", SETS)
def test_miniatures_build(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path / "set", save)
    options = {"validation": 0.0, "set": name}
    manifest = build(f"retina:{tmp_path / 'set'}", tmp_path / "dest", options=options, size=64)
    assert (manifest.rejected, manifest.has_masks, manifest.fit, manifest.channels) == (0, True, "stretch", 3)
    train = open_shards(tmp_path / "dest").split("train")
    for row in (0, len(train) - 1):
        assert set(np.unique(train.mask(row))) == {0, 255}
        number = int("".join(c for c in Path(train.path(row)).stem if c.isdigit()))
        top, bottom, left, right = BOX
        cut = Image.fromarray(eye(number)[top:bottom, left:right]).resize((64, 64), Image.Resampling.BICUBIC)
        assert np.abs(train.image(row).astype(int) - np.asarray(cut)).mean() < 8  # JPEG, where it is one
        cross = Image.fromarray(white(drawn(number))[top:bottom, left:right]).resize((64, 64), Image.Resampling.BOX)
        agree = (train.mask(row) > 0) == (np.asarray(cross) > 0)
        assert agree.mean() > (0.9 if name == "drishti_gs" else 0.95)
    assert verify(tmp_path / "dest") == []


def test_the_default_is_512_pixels(tmp_path: Path) -> None:
    stare(tmp_path / "set", save)
    assert build(f"retina:{tmp_path / 'set'}", tmp_path / "dest").image_size == 512


def test_soft_maps_are_cut_at_two_of_four_annotators(tmp_path: Path) -> None:
    drishti_gs(tmp_path / "set", save)
    for target, share in (("disc", 126 / 255), ("cup", 94 / 255)):
        record = read(tmp_path / "set", target=target).records[0]
        soft = record.mask()
        assert 0 < soft.max() <= 252 and len(np.unique(soft)) > 2
        assert (soft > 255 * record.mask_above).any() and share > record.mask_above


def test_eyes_of_a_child_stay_together(tmp_path: Path) -> None:
    chase_db1(tmp_path, touch)
    listing = read(tmp_path, validation=0.25)  # five images, of which the last would be a left eye alone
    sides = {(record.group, record.split) for record in listing.records}
    assert len(sides) == len({record.group for record in listing.records}) == 14
    assert sorted(r.path[6:9] for r in listing.records if r.split == "validation") == ["01L", "01R", "02L", "02R"]
    drawn_by_seed = read(tmp_path, draw="keyed", seed=1).records
    assert {r.path for r in drawn_by_seed if r.split == "validation"} != {"Image_01L.jpg", "Image_01R.jpg"}


def test_parts_of_a_set_are_named(tmp_path: Path) -> None:
    drive(tmp_path, touch)
    for n in range(1, 21):
        (tmp_path / "test" / "1st_manual" / f"{n:02d}_manual1.gif").unlink()  # as some downloads are
    notes = read(tmp_path).warnings
    assert "20 images found, the published drive (vessel) counts 40 (20 train, 20 test)" in notes[0]
    assert "20 image(s) were left out, without a mask of vessel: 01_test.tif, 02_test.tif" in notes[1]


def test_broken_files_are_lines(tmp_path: Path) -> None:
    root = tmp_path / "set"
    drive(root, save)
    images, masks = root / "training" / "images", root / "training" / "1st_manual"
    (images / "21_training.tif").write_bytes(b"II*\0")
    save(images / "22_training.tif", np.zeros((60, 90, 3), np.uint8))
    (masks / "23_manual1.gif").write_bytes(b"GIF89a")
    save(masks / "24_manual1.gif", white(drawn(1))[:50])
    (masks / "25_manual1.gif").unlink()
    (masks / "25_manual1.gif").symlink_to(save(tmp_path / "y.png", white(drawn(2))))
    manifest = build(f"retina:{root}", tmp_path / "dest", size=32)
    with open(tmp_path / "dest" / REJECTED_NAME, newline="") as stream:
        reasons = {row["path"][16:18]: row["reason"] for row in csv.DictReader(stream)}
    assert manifest.rejected == 5
    assert reasons["22"] == "no field of view: no pixel is above 20"
    assert reasons["24"] == "mask is 90 x 50, image 90 x 60 pixels"
    assert "link leads out" in reasons["25"]
    assert set(reasons) == {"21", "22", "23", "24", "25"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": "drvie"}, r"set=drvie is unknown \(did you mean 'drive'\?\)"),
        ({"set": "hrf"}, "is not hrf as published; e.g. it would hold images and manual1"),
        ({"target": "vesel"}, r"drive has no target 'vesel' \(did you mean 'vessel'\?\)"),
        ({"draw": "last"}, "draw=last is unknown"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict, message: str) -> None:
    drive(tmp_path, touch)
    with pytest.raises(UserError, match=message):
        read(tmp_path, **options)


def test_folders_of_nothing_or_of_too_much(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is none of drive, rite, stare"):
        read(tmp_path)
    (tmp_path / "a" / "labels-ah").mkdir(parents=True)
    with pytest.raises(UserError, match="looks like stare, but has no image with a mask of the target vessel"):
        read(tmp_path)
    hrf(tmp_path / "b", touch)
    with pytest.raises(UserError, match=r"holds several sets \(.*\); name one by set="):
        read(tmp_path)
    assert read(tmp_path, set="hrf").name == "hrf"
