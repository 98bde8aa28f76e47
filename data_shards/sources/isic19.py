"""isic19:PATH - ISIC 2019 as its publisher unpacks it (https://challenge.isic-archive.com/data/#2019), 8 classes.

PATH/ISIC_2019_Training_GroundTruth.csv, PATH/ISIC_2019_Training_Input/ISIC_0000000.jpg (some names end in
`_downsampled`), and, for groups, PATH/ISIC_2019_Training_Metadata.csv with lesion_id.

The published ADSL split is the file list cut by image number: train ISIC_0000000-0064820, test ISIC_0064821-0073254. It
is not grouped by lesion, so a lesion may lie on both sides. To keep results comparable such an overlap is a warning in
the manifest here, not an error; the groups are stored, so that evaluation can leave out gallery items of the query's
lesion. Validation (decisions while training) is carved from train by lesion: no lesion is torn between those two.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_shards.errors import UserError
from data_shards.sources.listing import Listing, Record
from data_shards.sources.published import differences
from data_shards.sources.splits import carve
from data_shards.sources.table import read_rows

# class -> images in (train, test)
COUNTS = {
    "MEL": (3349, 1173),
    "NV": (11059, 1816),
    "BCC": (2094, 1229),
    "AK": (542, 325),
    "BKL": (2131, 493),
    "DF": (182, 57),
    "VASC": (194, 59),
    "SCC": (449, 179),
}
CLASSES = tuple(COUNTS)
LAST_TRAIN, LAST_TEST = 64820, 73254
_NAME = re.compile(r"ISIC_(\d{7})(_downsampled)?")
_FOLDER = "ISIC_2019_Training_Input"


def read(path: Path, *, validation: float = 0.1, group: str = "lesion", seed: int = 0) -> Listing:
    """List ISIC 2019; `group` is "lesion" (when the metadata file is there) or "none"."""
    if group not in ("lesion", "none"):
        raise UserError(f"group={group} is unknown for isic19; use lesion or none.")
    rows = read_rows(path / "ISIC_2019_Training_GroundTruth.csv", required=("image", *CLASSES))
    lesions = _lesions(path) if group == "lesion" else {}
    folder = _image_folder(path)
    records, left_out = [], []
    for row in rows:
        split, label = split_of(row["image"]), _label(row)
        if split and label:
            file = folder / f"{row['image']}.jpg"
            name = file.relative_to(path).as_posix()
            records.append(Record(name, label, split, lesions.get(row["image"], ""), file=file))
        else:
            left_out.append(row["image"])
    warnings = differences(records, COUNTS, "the published list")
    if left_out:
        warnings.append(f"{len(left_out)} rows outside the published list were left out, e.g. {left_out[0][:80]}.")
    if group == "lesion" and not lesions:
        warnings.append("No ISIC_2019_Training_Metadata.csv: lesions are unknown, images of one may cross splits.")
    return Listing(
        "isic19",
        CLASSES,
        tuple(carve(records, validation, seed)),
        root=path,
        warnings=tuple(warnings),
        allow_group_overlap=True,
    )


def split_of(image: str) -> str | None:
    """Return the published split of an image by its number, or None for a name outside of the published range."""
    match = _NAME.fullmatch(image)
    if match is None or int(match[1]) > LAST_TEST:
        return None
    return "train" if int(match[1]) <= LAST_TRAIN else "test"


def _label(row: dict[str, str]) -> str | None:
    """Return the one class whose column is 1, or None (unknown or contradictory rows)."""
    marked = [name for name in CLASSES if row[name] in ("1", "1.0")]
    return marked[0] if len(marked) == 1 else None


def _lesions(path: Path) -> dict[str, str]:
    file = path / "ISIC_2019_Training_Metadata.csv"
    if not file.exists():
        return {}
    return {row["image"]: row["lesion_id"] for row in read_rows(file, required=("image", "lesion_id"))}


def _image_folder(path: Path) -> Path:
    """Return the folder of the images; unpacking often nests it in a folder of the same name."""
    for folder in (path / _FOLDER / _FOLDER, path / _FOLDER):
        if folder.is_dir():
            return folder
    raise UserError(f"{path} has no folder {_FOLDER}; unpack the publisher's zip file there.")
