"""A first look at somebody's images: what the source is, how large and how many, how unlike in number, whose.

Nothing is decided here; `launch/starter.py` does. Files are opened in processes of their own, as when shards are built.

Legend: C channels.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.decode import Unreadable, load_image, read_bytes
from data_shards.errors import UserError
from data_shards.rendering import probe
from data_shards.sandbox import Reply, Sandbox
from data_shards.sources import Listing, Record, read_source
from data_shards.sources.table import read_rows

MAX_LOOKED_AT = 200  # headers and pixels; numbers of images and classes are of all
MIN_GROUPS, MAX_GROUP_SHARE = 5, 0.2
_OWNER = re.compile(r"(patient|subject|lesion|case|study|person|animal|slide|participant)(_?(id|no|number|uid))?", re.I)
_COLUMNS = {"path", "label", "split", "group", "mask"}


@dataclass(frozen=True)
class Survey:
    """What was found. `options` are those of the source; sides are in pixels; mean and std (C,) of 0 to 1."""

    source: str
    options: dict[str, str]
    why_group: str
    listing: Listing
    looked_at: int
    unreadable: tuple[str, ...]
    shorter_px: int
    largest_px: int
    elongation: float
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def class_counts(self) -> dict[str, int]:
        """Numbers of images of every class, most first."""
        return dict(Counter(record.label for record in self.listing.records).most_common())


def survey(path: Path) -> Survey:
    """Look at a folder of class folders, a CSV table of images, or a folder that holds one.

    Raises:
        UserError: there are no images, or none that can be read.
    """
    source = source_of(path)
    options, why = grouping(source)
    listing = read_source(source, options)
    return Survey(source, options, why, listing, **_measured(listing))


def source_of(path: Path) -> str:
    """Return "table:FILE" or "folder:PATH"; raises UserError for what is neither."""
    if path.is_file():
        return f"table:{path}"
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give a folder of class folders, or a CSV file")
    tables = [file for file in sorted(path.glob("*.csv")) if _is_listing(file)]
    if len(tables) > 1:
        raise UserError(f"{path} holds several tables of images ({tables[0].name}, {tables[1].name}, ...); name one")
    return f"table:{tables[0]}" if tables else f"folder:{path}"


def _is_listing(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        columns = {name.strip().strip('"') for name in stream.readline(1 << 16).split(",")}
    return {"path", "label"} <= columns


def grouping(source: str) -> tuple[dict[str, str], str]:
    """Return the option of the source that keeps images of one patient together, and why; {} if none is in sight."""
    kind, _, place = source.partition(":")
    if kind == "table":
        return _column(read_rows(Path(place), required=("path", "label")))
    nested = read_source(source, {"group": "parent"}).records
    if _plausible([record.group for record in nested]):
        return {"group": "parent"}, "images lie in folders below their class, which may be patients"
    stems = [Path(record.path).stem for record in nested]
    prefixes = [re.split(r"[_\-. ]", stem)[0] for stem in stems]
    length = len(prefixes[0])
    if all(len(prefix) == length < len(stem) for prefix, stem in zip(prefixes, stems, strict=True)) and _plausible(
        prefixes
    ):
        example = next(prefix for prefix, count in Counter(prefixes).items() if count > 1)
        return {"group": str(length)}, f"file names share beginnings, as {example}, which may be patients"
    return {}, "nothing in names or folders tells patients apart"


def _column(rows: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], str]:
    if "group" in rows[0]:
        return {}, "the table has a column group"
    for name in rows[0]:
        if name not in _COLUMNS and _OWNER.fullmatch(name) and len({row[name] for row in rows}) > 1:
            return {"group": name}, f"the column {name} may name patients"
    return {}, "no column of the table tells patients apart"


def _plausible(groups: Sequence[str]) -> bool:
    """Return whether names could be those of patients: many, some with several images, none with a large part."""
    counts = Counter(group for group in groups if group)
    total = sum(counts.values())
    return (
        total == len(groups)
        and MIN_GROUPS <= len(counts) < total
        and max(counts.values()) <= max(2.0, MAX_GROUP_SHARE * total)
    )


def _measured(listing: Listing) -> dict[str, Any]:
    """Return sizes, channels and colours of some images, evenly spread over the listing."""
    records = listing.records
    places = np.unique(np.linspace(0, len(records) - 1, min(len(records), MAX_LOOKED_AT)).astype(int)).tolist()
    root = None if listing.root is None else os.path.realpath(listing.root)

    def step(place: int) -> Reply:
        return _facts(records[place], root), b""

    with Sandbox(step) as sandbox:
        answers = dict(zip(places, sandbox.run(places), strict=True))
    unreadable = [f"{records[i].path}: {found}" for i, found in answers.items() if isinstance(found, Unreadable)]
    facts = [found[0] for found in answers.values() if not isinstance(found, Unreadable)]
    if not facts:
        raise UserError(f"No image of {listing.name} can be read; the first: {unreadable[0]}.")
    channels = max(fact["channels"] for fact in facts)
    mean = np.mean([fact["mean"] for fact in facts], axis=0)[:channels]
    variance = np.mean([fact["square"] for fact in facts], axis=0)[:channels] - mean**2
    spread = np.sqrt(np.maximum(variance, 0))
    sides = np.array([sorted((fact["height"], fact["width"])) for fact in facts])
    return {
        "looked_at": len(places),
        "unreadable": tuple(unreadable),
        "shorter_px": int(np.median(sides[:, 0])),
        "largest_px": int(sides.max()),
        "elongation": float(np.median(sides[:, 1] / sides[:, 0])),
        "channels": channels,
        "mean": tuple(round(float(value), 3) for value in mean),
        "std": tuple(round(max(float(value), 0.05), 3) for value in spread),
    }


def _facts(record: Record, root: str | None) -> dict[str, Any]:
    """Return size, channels, and mean and mean square of the colours, of one image file."""
    header = probe(record, root)
    assert record.file is not None  # of folders and tables
    pixels = load_image(read_bytes(record.file), 3, draft_px=64).reshape(-1, 3) / 255
    return {
        "height": header.height,
        "width": header.width,
        "channels": header.channels,
        "mean": pixels.mean(axis=0).tolist(),
        "square": (pixels**2).mean(axis=0).tolist(),
    }
