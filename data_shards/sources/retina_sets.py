"""Where the retinal segmentation sets keep images and masks, as their publishers ship them, and who is in which split.

DRIVE (Staal et al. 2004, https://doi.org/10.1109/TMI.2004.825627) and RITE (Hu et al. 2013), which has the same images:
the publisher's training and test. STARE (Hoover et al. 2000, https://doi.org/10.1109/42.845178), first annotator;
CHASE_DB1 (Fraz et al. 2012, https://doi.org/10.1109/TBME.2012.2205687), first observer; HRF (Budai et al. 2013,
https://doi.org/10.1155/2013/154860): their publishers have no split, so the first 10 of 20, 20 of 28 and 25 of 45
images by name are training, which are the published numbers; the published lists themselves are not at hand. Drishti-GS
(Sivaswamy et al. 2015) and IDRiD (Porwal et al. 2018, https://doi.org/10.3390/data3030025): the publishers' folders.

A lesion of IDRiD that an eye does not have has no mask file; such images are left out, as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_shards.sources.archival import SUFFIXES
from data_shards.sources.folder import walk_files
from data_shards.sources.splits import first_whole


@dataclass(frozen=True)
class Pair:
    """An image and its mask (None: there is none for this target)."""

    image: Path
    mask: Path | None
    split: str
    group: str = ""


@dataclass(frozen=True)
class FundusSet:
    """One set: `marks` (patterns below its folder) tell it, `counts` are images in (train, test) for every target.

    `pairs(root, target)` lists it. Masks are painted black and not black, or `soft`: shares of annotators who agree.
    """

    marks: tuple[str, ...]
    counts: Mapping[str, tuple[int, int]]
    pairs: Callable[[Path, str], list[Pair]]
    soft: bool = False
    mask_above: float = 0.3  # of the scaled mask; the published threshold

    def is_at(self, folder: Path) -> bool:
        return all(next(folder.glob(mark), None) is not None for mark in self.marks)


def _by_number(root: Path, target: str, masks: str) -> list[Pair]:
    """List DRIVE or RITE: training/images/21_training.tif and the file of `masks` that begins with 21."""
    pairs = []
    for folder, split in (("training", "train"), ("test", "test")):
        drawn = {_number(file): file for file in walk_files(root / folder / masks, SUFFIXES)}
        images = walk_files(root / folder / "images", SUFFIXES)
        pairs += [Pair(image, drawn.get(_number(image)), split) for image in images]
    return pairs


def _number(file: Path) -> str:
    match = re.match(r"\d+", file.name)
    return match[0] if match else file.name


def _stare(root: Path, target: str) -> list[Pair]:
    """List stare-images/im0001.ppm and labels-ah/im0001.ah.ppm, each perhaps with .gz."""
    drawn = {file.name.split(".")[0]: file for file in walk_files(root / "labels-ah", SUFFIXES)}
    folder = next((root / name for name in ("stare-images", "images") if (root / name).is_dir()), root)
    images = [file for file in walk_files(folder, SUFFIXES) if re.fullmatch(r"im\d+\.\w+(\.gz)?", file.name)]
    return _cut([(image, drawn.get(image.name.split(".")[0]), "") for image in images], 10, 20)


def _chase(root: Path, target: str) -> list[Pair]:
    """List Image_01L.jpg and Image_01L_1stHO.png; 01 is the child, whose eyes stay together."""
    images = [file for file in walk_files(root, {".jpg"}) if re.fullmatch(r"Image_\d+[LR]", file.stem)]
    found = [(file, _if_there(file.with_name(f"{file.stem}_1stHO.png")), file.stem[6:-1]) for file in images]
    return _cut(found, 20, 28)


def _hrf(root: Path, target: str) -> list[Pair]:
    """List images/01_dr.JPG and manual1/01_dr.tif; names count patients, each with one image."""
    drawn = {file.stem: file for file in walk_files(root / "manual1", SUFFIXES)}
    images = walk_files(root / "images", SUFFIXES)
    return _cut([(image, drawn.get(image.stem), "") for image in images], 25, 45)


def _cut(found: list[tuple[Path, Path | None, str]], num_train: int, num_all: int) -> list[Pair]:
    """Return pairs of which the first are training, `num_train` of `num_all`, and no group is on both sides."""
    found = sorted(found, key=lambda pair: pair[0].name)
    train = first_whole([group for _, _, group in found], len(found) * num_train // num_all)
    return [
        Pair(image, mask, "train" if mine else "test", group)
        for (image, mask, group), mine in zip(found, train, strict=True)
    ]


def _drishti(root: Path, target: str) -> list[Pair]:
    """List Training/Images/drishtiGS_002.png and Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png."""
    part, pairs = {"disc": "OD", "cup": "cup"}[target], []
    for folder, truths, split in (("Training", ("GT",), "train"), ("Test", ("Test_GT", "GT"), "test")):
        for image in walk_files(root / folder / "Images", {".png"}):
            name = f"{image.stem}/SoftMap/{image.stem}_{part}segSoftmap.png"
            drawn = [file for truth in truths if (file := _if_there(root / folder / truth / name))]
            pairs.append(Pair(image, drawn[0] if drawn else None, split))
    return pairs


_LESIONS = {
    "disc": ("5. Optic Disc", "OD"),
    "hard_exudates": ("3. Hard Exudates", "EX"),
    "microaneurysms": ("1. Microaneurysms", "MA"),
    "haemorrhages": ("2. Haemorrhages", "HE"),
    "soft_exudates": ("4. Soft Exudates", "SE"),
}


def _idrid(root: Path, target: str) -> list[Pair]:
    """List 1. Original Images/a. Training Set/IDRiD_01.jpg and .../a. Training Set/3. Hard Exudates/IDRiD_01_EX.tif."""
    (part, letters), pairs = _LESIONS[target], []
    for folder, split in (("a. Training Set", "train"), ("b. Testing Set", "test")):
        for image in walk_files(root / "1. Original Images" / folder, {".jpg"}):
            truth = root / "2. All Segmentation Groundtruths" / folder / part / f"{image.stem}_{letters}.tif"
            pairs.append(Pair(image, _if_there(truth), split))
    return pairs


def _if_there(file: Path) -> Path | None:
    return file if file.exists() else None


SETS: dict[str, FundusSet] = {
    "drive": FundusSet(
        ("training/images", "training/1st_manual"), {"vessel": (20, 20)}, partial(_by_number, masks="1st_manual")
    ),
    "rite": FundusSet(
        ("training/images", "training/vessel"), {"vessel": (20, 20)}, partial(_by_number, masks="vessel")
    ),
    "stare": FundusSet(("labels-ah",), {"vessel": (10, 10)}, _stare),
    "chase_db1": FundusSet(("Image_*_1stHO.png",), {"vessel": (20, 8)}, _chase),
    "hrf": FundusSet(("images", "manual1"), {"vessel": (25, 20)}, _hrf, mask_above=0.01),
    "drishti_gs": FundusSet(
        ("Training/Images", "Training/GT"), {"disc": (50, 51), "cup": (50, 51)}, _drishti, soft=True
    ),
    "idrid": FundusSet(
        ("1. Original Images", "2. All Segmentation Groundtruths"),
        {
            "disc": (54, 27),
            "hard_exudates": (54, 27),
            "microaneurysms": (54, 27),
            "haemorrhages": (53, 27),
            "soft_exudates": (26, 14),
        },
        _idrid,
    ),
}
