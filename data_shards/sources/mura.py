"""mura:PATH - MURA v1.1 radiographs (Rajpurkar et al. 2018, https://arxiv.org/abs/1712.06957), 14 classes.

PATH/MURA-v1.1/train|valid/XR_ELBOW/patient00011/study1_negative/image1.png, where PATH may be MURA-v1.1 itself. A class
is a body part, normal or abnormal. The official valid set is the test split. The patient is the group; train and valid
hold different people, so patient numbers are told apart by side. Validation is carved from train by patient.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_shards.errors import UserError
from data_shards.sources.folder import walk_files
from data_shards.sources.listing import Listing, Record
from data_shards.sources.published import differences
from data_shards.sources.splits import carve

# class -> images in (train, test)
COUNTS = {
    "elbow-negative": (2925, 235),
    "elbow-positive": (2006, 230),
    "finger-negative": (3138, 214),
    "finger-positive": (1968, 247),
    "forearm-negative": (1164, 150),
    "forearm-positive": (661, 151),
    "hand-negative": (4059, 271),
    "hand-positive": (1484, 189),
    "humerus-negative": (673, 148),
    "humerus-positive": (599, 140),
    "shoulder-negative": (4211, 285),
    "shoulder-positive": (4168, 278),
    "wrist-negative": (5765, 364),
    "wrist-positive": (3987, 295),
}
CLASSES = tuple(COUNTS)
_SPLITS = {"train": "train", "valid": "test"}
_PATH = re.compile(r"(train|valid)/XR_([A-Z]+)/(patient\d+)/study\d+_(negative|positive)/[^/]+")


def read(path: Path, *, validation: float = 0.1, seed: int = 0) -> Listing:
    """List MURA; raises UserError when the folder does not hold train and valid."""
    root = path / "MURA-v1.1" if (path / "MURA-v1.1").is_dir() else path
    if not all((root / side).is_dir() for side in _SPLITS):
        raise UserError(f"{root} has no folders train and valid; unpack the publisher's MURA-v1.1.zip there.")
    records, left_out = [], []
    for side in _SPLITS:
        for file in walk_files(root / side, {".png"}):
            record = record_of(file.relative_to(root).as_posix(), file)
            if record is None:
                left_out.append(file)
            else:
                records.append(record)
    warnings = differences(records, COUNTS, "the official v1.1 set")
    if left_out:
        warnings.append(f"{len(left_out)} files lie where MURA has no images and were left out, e.g. {left_out[0]}.")
    return Listing("mura", CLASSES, tuple(carve(records, validation, seed)), root=root, warnings=tuple(warnings))


def record_of(name: str, file: Path | None = None) -> Record | None:
    """Return the record of an image by its path below MURA-v1.1, or None when it is not one of MURA's."""
    match = _PATH.fullmatch(name)
    label = f"{match[2].lower()}-{match[4]}" if match else ""
    if match is None or label not in COUNTS:
        return None
    return Record(name, label, _SPLITS[match[1]], group=f"{match[1]}/{match[3]}", file=file)
