"""Which slides there are: a folder of class folders, or a table; less those that a list says to skip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UserError, nearest_of
from data_shards.files import open_plain
from data_shards.schema import split_name
from data_shards.sources.folder import list_images
from data_shards.sources.published import left_out
from data_shards.sources.table import inside, read_rows

PLAUSIBLE_MPP = (0.02, 20.0)  # outside is no microscope, but the resolution of a screen or a printer
_SUFFIXES = {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".svslide", ".bif", ".vms", ".vmu", ".czi"}
_KEPT = ("", "0", "no", "false")
_MAX_LIST_BYTES = 16 << 20


@dataclass(frozen=True)
class Slide:
    """A slide of the list: `mpp` overrides what its file says, `patient` "" is unknown, `split` "" is to be drawn."""

    name: str
    file: Path
    label: str
    split: str = ""
    patient: str = ""
    mpp: float | None = None


def list_slides(path: Path) -> tuple[list[Slide], list[str]]:
    """Return the slides of a folder or a table, and what was left out; raises UserError."""
    return _in_folder(path) if path.is_dir() else _in_table(path)


def _in_folder(path: Path) -> tuple[list[Slide], list[str]]:
    found = list_images(path, _SUFFIXES, "none")
    return [Slide(one.path, one.file, one.label, one.split) for one in found if one.file is not None], []


def _in_table(path: Path) -> tuple[list[Slide], list[str]]:
    slides: dict[str, Slide] = {}
    skipped = []
    for number, row in enumerate(read_rows(path, required=("file", "label")), start=2):
        where, name = f"{path} line {number}", row["file"]
        if name in slides or name in skipped:
            raise UserError(f"{where}: the slide {name} is listed twice.")
        if row.get("skip", "").lower() not in _KEPT:
            skipped.append(name)
            continue
        if not row["label"]:
            raise UserError(f"{where}: the label is empty.")
        split = split_name(row["split"], where) if row.get("split") else ""
        slides[name] = Slide(
            name, inside(path.parent, name, where), row["label"], split, row.get("patient", ""), _mpp_of(row, where)
        )
    return [*slides.values()], left_out("slide", skipped, "marked in the column skip")


def _mpp_of(row: dict[str, str], where: str) -> float | None:
    text = row.get("mpp", "")
    try:
        return checked_mpp(float(text) if text else None, f"{where}: mpp {text}")
    except ValueError:
        raise UserError(f"{where}: mpp '{text[:40]}' is not a number.") from None


def checked_mpp(mpp: float | None, where: str) -> float | None:
    """Return microns per pixel that a user gave; raises UserError for what no slide has."""
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not low <= mpp <= high:
        raise UserError(f"{where} is not a resolution of a slide; use microns per pixel, {low:g} to {high:g}.")
    return mpp


def without(slides: list[Slide], file: Path) -> tuple[list[Slide], list[str]]:
    """Return the slides that a text file (a name per line, # for comments) does not name, and say which it does."""
    try:
        with open_plain(file, _MAX_LIST_BYTES, follow=True) as stream:
            lines = [line.strip() for line in stream.read().decode("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The skip list {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    wanted = dict.fromkeys(line for line in lines if line and not line.startswith("#"))
    known = [slide.name for slide in slides]
    if strangers := [name for name in wanted if name not in known]:
        hint = nearest_of(strangers[0], known)
        raise UserError(f"The skip list {file} names '{strangers[0][:100]}', which is no slide here{hint}.")
    kept = [slide for slide in slides if slide.name not in wanted]
    return kept, left_out("slide", [*wanted], f"named in {file.name}")
