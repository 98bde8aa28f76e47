"""table:PATH/labels.csv - a CSV file with the columns path and label, and split, group, mask when it has them.

Paths are relative to the folder of the file and may not leave it.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

from data_shards.errors import UserError, nearest_of
from data_shards.schema import split_name
from data_shards.sources.listing import Listing, Record, class_names
from data_shards.sources.splits import complete

_MAX_CELL = 4096


def read(
    path: Path,
    *,
    group: str = "group",
    validation: float | None = None,
    test: float | None = None,
    draw: str = "keyed",
    classes: str = "",
    test_classes: str = "",
    mask_above: float | None = None,
    seed: int = 0,
) -> Listing:
    """List the images of a CSV table; `group` names the group column ("none": groups are ignored).

    `draw` says what is taken from the training split where validation or test are missing: "keyed" (by class and seed)
    or "first" (the first rows). `classes` ("a,b,c") fixes which there are and their order. `test_classes`
    ("Bengali/*,N_Ko/*") are patterns of whole classes that make the test split, whatever the table says: classes that
    training never sees. `mask_above` says that masks are shades: what is above that share of 255, after scaling, is the
    object; otherwise what is not 0 is. Raises UserError for other classes, missing columns, empty cells, unknown
    splits, double paths and paths that leave the folder.
    """
    if mask_above is not None and not 0 <= mask_above < 1:
        raise UserError(f"mask_above={mask_above} is a share of 255: use 0 or more, and less than 1.")
    records, notes = complete(_held_out(list_rows(path, group), test_classes), validation, test, seed, draw)
    names = class_names(records, classes)
    shaded = tuple(replace(record, mask_above=mask_above) for record in records)
    return Listing(path.parent.name, names, shaded, root=path.parent, warnings=tuple(notes))


def _held_out(records: list[Record], patterns: str) -> list[Record]:
    """Return the records with the classes of the given patterns in the test split."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for pattern in wanted:
        if not any(fnmatchcase(record.label, pattern) for record in records):
            raise UserError(f"test_classes: no class is called {pattern}; e.g. there is {records[0].label}.")
    return [
        replace(record, split="test") if any(fnmatchcase(record.label, pattern) for pattern in wanted) else record
        for record in records
    ]


def list_rows(path: Path, group: str) -> list[Record]:
    """Return a record per row of the table, split "" where it gives none; raises UserError as `read` does."""
    rows = read_rows(path, required=("path", "label"))
    if group not in ("none", "group") and group not in rows[0]:
        hint = nearest_of(group, list(rows[0]))
        raise UserError(f"{path} has no column '{group}'{hint}; it has: {', '.join(rows[0])}.")
    records, seen = [], set()
    for number, row in enumerate(rows, start=2):
        where = f"{path} line {number}"
        record = _record(row, path.parent, "" if group == "none" else row.get(group, ""), where)
        if record.path in seen:
            raise UserError(f"{where}: the path {record.path} is listed twice.")
        seen.add(record.path)
        records.append(record)
    return records


def read_rows(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dicts of stripped text; raises UserError naming the columns that are missing."""
    if not path.is_file():
        raise UserError(f"Table {path} does not exist or is not a file.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            if missing := [name for name in required if name not in columns]:
                raise UserError(
                    f"{path} lacks the column(s) {', '.join(missing)}; it has: {', '.join(columns) or 'none'}."
                )
            rows = [
                {
                    str(k).strip(): (v or "").strip()
                    for k, v in row.items()
                    if isinstance(k, str) and not isinstance(v, list)
                }
                for row in reader
            ]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable CSV file in UTF-8 ({error}).") from None
    if not rows:
        raise UserError(f"{path} has a header but no rows.")
    return rows


def inside(root: Path, name: str, where: str) -> Path:
    """Return root/name; raises UserError when `name` is empty, absolute or leads out of `root` by '..' or a link."""
    relative = PurePosixPath(name)
    foreign = relative.is_absolute() or PureWindowsPath(name).anchor or ".." in relative.parts or "\0" in name
    if not name or len(name) > _MAX_CELL or foreign:
        raise UserError(f"{where}: the path '{name[:100]}' must be relative, without '..', below {root}.")
    return root / relative


def _record(row: dict[str, str], root: Path, group: str, where: str) -> Record:
    if not row["label"]:
        raise UserError(f"{where}: the label is empty.")
    mask = row.get("mask", "")
    return Record(
        path=row["path"],
        label=row["label"],
        split=split_name(row["split"], where) if row.get("split") else "",
        group=group,
        file=inside(root, row["path"], where),
        mask_file=inside(root, mask, where) if mask else None,
    )
