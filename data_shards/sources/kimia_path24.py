"""kimia_path24:PATH - Kimia Path24 (Babaie et al. 2017, https://arxiv.org/abs/1705.07522), 24 scans, a class each.

PATH is the folder of the colour patches as released (Kimia Path24C, Shafiei et al. 2021,
https://arxiv.org/abs/2102.07611): Training/<class>/*.jpg and RGBPatches-test/<class>/*.jpg, there or one folder down,
the class being s0 to s23 or 0 to 23. Or it is Kimia_Path24.h5, the file of whole scans, from which training patches
are cut here (kimia_scans.py). The publisher's test patches are the test split; validation is carved from train, keyed
by the patch, 10 % as in the published code. Patches are stored at 300 pixels, as there, unless a size is given.

There are no groups: a class is one scan, so that every positive pair is of one scan by design of the set.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_shards.errors import UserError
from data_shards.sources.folder import IMAGE_SUFFIXES, child_folders, walk_files
from data_shards.sources.kimia_scans import Grid, list_scans
from data_shards.sources.listing import Listing, Record
from data_shards.sources.published import differences
from data_shards.sources.splits import carve

_TEST = (65, 65, 65, 75, 15, 40, 70, 50, 60, 60, 70, 70, 70, 60, 60, 30, 45, 45, 25, 25, 65, 65, 65, 65)
# class -> images in (train, test); training patches are cut by whoever uses the set, so that nobody counts them
COUNTS = {f"s{scan}": (None, num) for scan, num in enumerate(_TEST)}
CLASSES = tuple(COUNTS)
PUBLISHED_PX = 300
_FOLDERS = {"Training": "train", "RGBPatches-test": "test"}
_CLASS = re.compile(r"s?(\d{1,2})")


def read(
    path: Path, *, patch: int = 1000, stride: int = 0, tissue: float = 0.1, validation: float = 0.1, seed: int = 0
) -> Listing:
    """List Kimia Path24; raises UserError when PATH is neither of its two layouts.

    For the file of scans: training patches of `patch` pixels every `stride` pixels (0: side by side), of which at least
    the fraction `tissue` is tissue.
    """
    if path.is_dir():
        root = _root(path)
        records, notes = _released(root)
    else:
        path = path.resolve()  # it may be linked from where there is room
        root = path.parent
        records, notes = list_scans(path, CLASSES, Grid(patch, stride or patch, tissue))
    notes = [*notes, *differences(records, COUNTS, "the published list")]
    carved = carve(records, validation, seed)
    return Listing("kimia_path24", CLASSES, tuple(carved), root, warnings=tuple(notes), default_size=PUBLISHED_PX)


def _root(path: Path) -> Path:
    for folder in (path, *child_folders(path)):
        if all((folder / name).is_dir() for name in _FOLDERS):
            return folder
    raise UserError(
        f"{path} has no folders {' and '.join(_FOLDERS)}; unpack the colour patches of Kimia Path24 there, or name "
        "the file Kimia_Path24.h5."
    )


def _released(root: Path) -> tuple[list[Record], list[str]]:
    """Return the records of the released patches, classes in the order of their numbers, and what was left out."""
    records, strangers = [], []
    for name, split in _FOLDERS.items():
        found = {folder: _label(folder.name) for folder in child_folders(root / name)}
        strangers += [folder.relative_to(root).as_posix() for folder, label in found.items() if not label]
        for folder in sorted((f for f in found if found[f]), key=lambda f: CLASSES.index(found[f])):
            for file in walk_files(folder, IMAGE_SUFFIXES):
                records.append(Record(file.relative_to(root).as_posix(), found[folder], split, file=file))
    if not records:
        raise UserError(f"No images under {root}; expected {root}/Training/s0/1.jpg and so on.")
    if not strangers:
        return records, []
    return records, [f"{len(strangers)} folders are not one of the 24 classes and were left out: {strangers[0]}."]


def _label(folder: str) -> str:
    """Return the class that a folder holds, "" for none."""
    match = _CLASS.fullmatch(folder)
    return f"s{int(match[1])}" if match and int(match[1]) < len(CLASSES) else ""
