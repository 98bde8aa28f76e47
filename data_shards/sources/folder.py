"""folder:PATH - folders of images: PATH/[train|val|test/]CLASS/.../image.jpg, classes in alphabetical order.

When the first level holds split names only, it is the split level; otherwise splits are drawn (keyed, by class).
"""

from __future__ import annotations

import os
from pathlib import Path

from data_shards.errors import UserError
from data_shards.schema import known_split
from data_shards.sources.listing import Listing, Record, class_names
from data_shards.sources.splits import complete

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp"}


def read(
    path: Path,
    *,
    validation: float | None = None,
    test: float | None = None,
    group: str = "none",
    classes: str = "",
    seed: int = 0,
) -> Listing:
    """List a folder of class folders.

    `group` is "none", "parent" (the folder an image lies in, when it is below the class folder), or a number n: the
    first n characters of the file name. `classes` ("a,b,c") fixes which classes there are and
    their order. Files of other formats are listed too and end up in rejected.csv by content.
    """
    records, notes = complete(list_images(path, IMAGE_SUFFIXES, group), validation, test, seed)
    return Listing(path.name, class_names(records, classes), tuple(records), root=path, warnings=tuple(notes))


def list_images(path: Path, suffixes: set[str], group: str) -> list[Record]:
    """Return a record per file with one of `suffixes`, split "" without a split level; raises UserError for none."""
    records = []
    for split, top in _split_folders(path):
        for class_folder in child_folders(top):
            for file in walk_files(class_folder, suffixes):
                name = file.relative_to(path).as_posix()
                records.append(Record(name, class_folder.name, split, _group(file, class_folder, group), file=file))
    if not records:
        raise UserError(f"No images under {path}; expected {path}/CLASS/image.jpg or {path}/train/CLASS/image.jpg.")
    return records


def child_folders(folder: Path) -> list[Path]:
    """Return the visible folders directly inside `folder`, sorted by name."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def walk_files(folder: Path, suffixes: set[str]) -> list[Path]:
    """Return the visible files below `folder` with one of `suffixes`, sorted; linked folders are not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(file for file in found if file.suffix.lower() in suffixes)


def _split_folders(path: Path) -> list[tuple[str, Path]]:
    children = child_folders(path)
    named = [(known_split(child.name), child) for child in children]
    if children and all(split for split, _ in named):
        return [(split, child) for split, child in named if split]
    return [("", path)]


def _group(file: Path, class_folder: Path, rule: str) -> str:
    if rule == "none":
        return ""
    if rule == "parent":
        return "" if file.parent == class_folder else file.parent.relative_to(class_folder).as_posix()
    if rule.isdigit() and int(rule) > 0:
        return file.stem[: int(rule)]
    raise UserError(f"group={rule} is unknown for a folder; use none, parent, or a number of leading characters.")
