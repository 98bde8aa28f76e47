"""What the run was trained and scored on: images per class and split, groups, what was rejected and why."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from data_shards.errors import UserError
from data_shards.files import open_plain
from data_shards.manifest import Manifest
from data_shards.reader import ShardFolder, open_shards
from launch.report.collect import Record, Run
from launch.report.thumbnails import shards_near

MAX_CLASSES = 24
MAX_REASONS = 6
_MAX_BYTES = 64 << 20


def data_card(run: Run) -> Record | None:
    """Return the card of the shards that the run names, None where they are not here or damaged.

    {"title", "splits", "rows": [(class, [images per split])], "hidden": classes left out, "totals", "groups": per
    split, "rejected", "reasons": [(reason, images)], "warnings"}
    """
    named = (run.config.get("data") or {}).get("shards")
    folder = shards_near(run.path, named) if named else None
    if folder is None:
        return None
    try:
        shards = open_shards(folder, verify=False)
        manifest = shards.manifest
        splits = list(manifest.splits)
        groups = [_num_groups(shards, split) for split in splits]
        reasons = rejected_reasons(folder)
    except UserError:
        return None
    return {
        "title": _title(manifest),
        "splits": splits,
        **class_rows(manifest, splits),
        "totals": [f"{manifest.num_rows(split):,}" for split in splits],
        "groups": [f"{number:,}" for number in groups] if any(groups) else [],
        "rejected": manifest.rejected,
        "reasons": reasons,
        "warnings": list(manifest.warnings),
    }


def class_rows(manifest: Manifest, splits: list[str]) -> Record:
    """Return {"rows", "hidden"}: the largest classes, by their images in all splits."""
    sizes = {name: [manifest.counts[split].get(name, 0) for split in splits] for name in manifest.classes}
    largest = sorted(sizes, key=lambda name: -sum(sizes[name]))[:MAX_CLASSES]
    rows = [(name, [f"{size:,}" for size in sizes[name]]) for name in largest]
    return {"rows": rows, "hidden": len(sizes) - len(rows)}


def rejected_reasons(folder: Path) -> list[tuple[str, int]]:
    """Return the most frequent reasons in FOLDER/rejected.csv with their images; [] when nothing was rejected."""
    path = folder / "rejected.csv"
    if not path.exists():
        return []
    try:
        with open_plain(path, _MAX_BYTES) as file:
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    found = Counter(str(line.get("reason") or "").strip() for line in csv.DictReader(text.splitlines()))
    return [(reason or "no reason", number) for reason, number in found.most_common(MAX_REASONS)]


def _num_groups(shards: ShardFolder, split: str) -> int:
    return len({str(group) for group in shards.split(split).groups} - {""})


def _title(manifest: Manifest) -> str:
    side = f"{manifest.image_size} pixels" if manifest.image_size else "original sizes"
    colour = "gray" if manifest.channels == 1 else "colour"
    parts = [f"{len(manifest.classes):,} classes", f"{side}, {colour}", f"stored {manifest.stored}"]
    return f"{manifest.name}: {', '.join([*parts, *(['with masks'] if manifest.has_masks else [])])}"
