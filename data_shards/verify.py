"""Check a whole shard folder: manifest, every shard's size and sha256, every image's crc32, the sums.

The sha256 covers every bit of a shard file; when it disagrees, the crc32 of the rows tells which images are hit.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from data_shards.errors import DataIntegrityError, UserError
from data_shards.files import sha256_of
from data_shards.manifest import Manifest, ShardEntry, read_manifest, regular_size
from data_shards.progress import meter
from data_shards.schema import SHARD_NAME
from data_shards.shard_file import ShardFile

_NAMED = 5


def verify(dest: Path | str, progress: bool = False) -> list[str]:
    """Return the problems of a shard folder, one sentence each; an empty list means it is what was built.

    Raises UserError when `dest` is not a folder at all.
    """
    folder = Path(dest)
    if not folder.is_dir():
        raise UserError(f"Shard folder {folder} does not exist.")
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return [str(error)]
    problems = [f"{folder / name}: not listed in the manifest." for name in _strangers(folder, manifest)]
    opened = []
    with meter("Verifying shards", len(manifest.shards), progress) as advance:
        for entry in manifest.shards:
            found, shard = _shard_problems(folder, entry, manifest)
            problems += found
            opened += [(entry, shard)] if shard is not None else []
            advance()
    return problems or _sum_problems(folder, manifest, opened)


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    listed = {entry.file for entry in manifest.shards}
    return sorted(name for name in os.listdir(folder) if SHARD_NAME.fullmatch(name) and name not in listed)


def _shard_problems(folder: Path, entry: ShardEntry, manifest: Manifest) -> tuple[list[str], ShardFile | None]:
    path = folder / entry.file
    try:
        size = regular_size(path, missing="the manifest lists it")
        if size != entry.bytes:
            return [f"{path} has {size} bytes instead of {entry.bytes}."], None
        damaged = sha256_of(path) != entry.sha256
    except (DataIntegrityError, OSError) as error:
        return [str(error)], None
    try:
        shard = ShardFile(path, manifest.factors)
    except DataIntegrityError as error:
        return [f"{path} does not match its sha256, and no image can be read: {error}" if damaged else str(error)], None
    bad = [row for row in range(len(shard)) if not shard.intact(row)]
    if damaged:
        return [f"{path} does not match its sha256; {_named(shard, bad)}."], None
    return ([f"{path}: {_named(shard, bad)}."], None) if bad else ([], shard)


def _named(shard: ShardFile, bad: list[int]) -> str:
    if not bad:
        return "all images are intact, the damage is in other columns or between them"
    names = ", ".join(f"{int(shard.sample_ids[row])} ({shard.path_of(row)})" for row in bad[:_NAMED])
    return f"{len(bad)} image(s) damaged: {names}{', ...' if len(bad) > _NAMED else ''}"


def _sum_problems(folder: Path, manifest: Manifest, opened: list[tuple[ShardEntry, ShardFile]]) -> list[str]:
    """Compare rows, ids and counts of intact shards with the manifest."""
    problems = []
    ids: Counter[int] = Counter()
    counts: Counter[tuple[str, int]] = Counter()
    for entry, shard in opened:
        if len(shard) != entry.rows:
            problems.append(f"{shard.path} has {len(shard)} rows instead of {entry.rows}.")
        ids.update(shard.sample_ids.tolist())
        counts.update((entry.split, label) for label in shard.labels.tolist())
    if doubled := [sample for sample, num in ids.items() if num > 1]:
        problems.append(f"{folder}: {len(doubled)} sample ids occur twice, e.g. {doubled[0]}.")
    expected = {
        (split, manifest.classes.index(name)): num
        for split, classes in manifest.counts.items()
        for name, num in classes.items()
        if num
    }
    if expected != dict(counts):
        problems.append(f"{folder}: images per class are not those of the manifest.")
    return problems
