"""chest:PATH - chest radiographs as their publishers ship them, one set at a time, with the masks of one target.

Sets (told by their files, or by set=NAME):

jsrt_scr: raw scans of JSRT (Shiraishi et al. 2000), masks of SCR (van Ginneken et al. 2006): lung, heart, clavicle.
siim_acr: pneumothorax, the images of the Kaggle challenge (2019) that have one.
cxr8: ChestX-ray8 (Wang et al. 2017, https://arxiv.org/abs/1705.02315), for training without labels; stored as-is.

Forms, splits and thresholds are those of the published preprocessing of Local Discrimination (Chen et al. 2021,
https://arxiv.org/abs/2108.09440): 512 x 512 pixels but for cxr8; SCR's fold1 is training and fold2 test, SIIM-ACR is
halved by name; validation is the first fifth of the training images by name (cxr8: a tenth, drawn by patient). There is
one class, chest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_shards.decode import Header, image_header
from data_shards.errors import UserError, nearest_of
from data_shards.sources import chest_jsrt, chest_siim
from data_shards.sources.folder import walk_files
from data_shards.sources.listing import Listing, Record
from data_shards.sources.published import differences, left_out
from data_shards.sources.splits import carve

CLASS = "chest"
PUBLISHED_PX = 512
_PATIENT = re.compile(r"(\d{8})_\d{3}")


@dataclass(frozen=True)
class ChestSet:
    """One set: images in (train, test) for every target, how it is told and listed, and how validation is taken."""

    counts: Mapping[str, tuple[int, int]]
    is_at: Callable[[Path], bool]
    records: Callable[[Path, str], tuple[list[Record], list[str]]]
    default_size: int | None = PUBLISHED_PX
    draw: str = "first"
    validation: float = 0.2


def read(
    path: Path, *, set: str = "", target: str = "", validation: float | None = None, draw: str = "", seed: int = 0
) -> Listing:
    """List one of the sets at PATH.

    `target` "" is the first that the set has. `draw` says which training images become validation: "first" (by name) or
    "keyed" (by the seed); "" is as above. Raises UserError for a folder, set or target that is not known.
    """
    name = _found(path, set)
    kind = SETS[name]
    target = target or next(iter(kind.counts))
    if target not in kind.counts:
        raise UserError(
            f"{name} has no target '{target}'{nearest_of(target, list(kind.counts))}; use {', '.join(kind.counts)}."
        )
    found, notes = kind.records(path, target)
    if not found:
        raise UserError(f"{path} looks like {name}, but has no image for the target {target}.")
    records = [replace(record, label=CLASS) for record in found]
    notes = [*differences(records, {CLASS: kind.counts[target]}, f"the published {name} ({target})"), *notes]
    share = kind.validation if validation is None else validation
    return Listing(
        name,
        (CLASS,),
        tuple(carve(records, share, seed, draw=draw or kind.draw)),
        path,
        warnings=tuple(notes),
        default_size=kind.default_size,
        default_fit="stretch",
    )


def _found(path: Path, wanted: str) -> str:
    if wanted and wanted not in SETS:
        raise UserError(f"set={wanted} is unknown{nearest_of(wanted, list(SETS))}; use {', '.join(SETS)}.")
    for name in [wanted] if wanted else SETS:
        if SETS[name].is_at(path):
            return name
    raise UserError(
        f"{path} is not {wanted or 'one of ' + ', '.join(SETS)} as published; they have fold1/masks and .IMG files, "
        "train-rle.csv, or images_001/images/00000001_000.png."
    )


def _cxr8(path: Path, target: str) -> tuple[list[Record], list[str]]:
    """List images_001/images/00000001_000.png and so on; 00000001 is the patient, the group."""
    records, strangers = [], []
    for file in walk_files(path, {".png"}):
        name = file.relative_to(path).as_posix()
        if match := _PATIENT.fullmatch(file.stem):
            records.append(Record(name, "", "train", match[1], file=file, header=partial(_gray_header, file)))
        else:
            strangers.append(name)
    return records, left_out("image", strangers, "not called like those of ChestX-ray8")


def _gray_header(file: Path) -> Header:
    """Some hundred files are gray pictures in RGBA; they must not make the whole set one of colour images."""
    return replace(image_header(file), channels=1)


def _holds_cxr8(path: Path) -> bool:
    folders = (path, *path.glob("images*"), *path.glob("images*/images"))
    return any(next(folder.glob("????????_???.png"), None) is not None for folder in folders)


SETS: dict[str, ChestSet] = {
    "jsrt_scr": ChestSet(chest_jsrt.COUNTS, chest_jsrt.is_at, chest_jsrt.records),
    "siim_acr": ChestSet(chest_siim.COUNTS, chest_siim.is_at, chest_siim.records),
    "cxr8": ChestSet({"none": (112_120, 0)}, _holds_cxr8, _cxr8, None, "keyed", 0.1),
}
