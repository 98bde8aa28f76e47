"""manifest.json of a shard folder: which shards there are, their hashes, and what was counted while building.

The manifest carries a sha256 over its own canonical JSON, and one per shard file, so a flipped bit anywhere in the
folder is found before a training step sees it (a JPEG with a flipped bit decodes silently in 383 of 400 trials, an
uncompressed Arrow file in 150 of 150). File names in it must match one pattern: no path can lead out of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from data_shards.errors import DataIntegrityError, UserError
from data_shards.schema import FACTOR_NAME, SCHEMA_VERSION, SHARD_NAME, SPLITS, STORED

MANIFEST_NAME = "manifest.json"
_MAX_BYTES = 64 << 20
_MAX_COUNT = 1 << 48


@dataclass(frozen=True)
class ShardEntry:
    """One shard file: every row of it belongs to `split`."""

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds; `counts[split][class]` are numbers of images."""

    name: str
    source: str
    stored: str
    image_size: int | None
    channels: int
    classes: tuple[str, ...]
    shards: tuple[ShardEntry, ...]
    counts: dict[str, dict[str, int]]
    factors: tuple[str, ...] = ()
    has_masks: bool = False
    rejected: int = 0
    created_with: dict[str, str] = field(default_factory=dict)
    fit: str = "crop"
    options: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def shards_of(self, split: str) -> list[ShardEntry]:
        """Return the shards of one split, in the order of their rows."""
        return [shard for shard in self.shards if shard.split == split]

    def num_rows(self, split: str) -> int:
        """Return the number of images of one split (0 when it does not exist)."""
        return sum(shard.rows for shard in self.shards_of(split))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold at least one image."""
        return tuple(split for split in SPLITS if self.num_rows(split))


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of `content`: sorted keys, no spaces, ASCII."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def to_json(manifest: Manifest) -> str:
    """Return the text of manifest.json, its own sha256 included."""
    content = {**asdict(manifest), "sha256": manifest_hash(manifest)}
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def manifest_hash(manifest: Manifest) -> str:
    """Return the sha256 that a manifest carries of itself; it stands for all bytes of the folder."""
    return hashlib.sha256(canonical_json(asdict(manifest))).hexdigest()


def from_json(text: str, where: str = MANIFEST_NAME) -> Manifest:
    """Parse and check a manifest; raises DataIntegrityError for damage, UserError for another schema version."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataIntegrityError(f"{where} is not readable JSON ({error}); build the shard folder again.") from None
    if not isinstance(content, dict) or not isinstance(content.get("sha256"), str):
        raise DataIntegrityError(f"{where} has no sha256 of itself; it is damaged or not a shard manifest.")
    written = content.pop("sha256")
    try:
        intact = hashlib.sha256(canonical_json(content)).hexdigest() == written
    except ValueError:
        intact = False
    if not intact:
        raise DataIntegrityError(f"{where} does not match its own sha256: it was changed or damaged after the build.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{where} has schema version {content.get('schema_version')}, this program reads {SCHEMA_VERSION}; "
            "build the shard folder again."
        )
    try:
        return _checked(_parsed(content))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataIntegrityError(f"{where} is not a valid manifest: {error}.") from None


def read_manifest(folder: Path) -> Manifest:
    """Read and check `folder`/manifest.json; raises UserError when there is none, DataIntegrityError for damage."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise UserError(f"Shard folder {folder} does not exist; build it with 'subspace shards build SOURCE {folder}'.")
    size = regular_size(path, missing="the folder is not a shard folder or its build was not finished")
    if size > _MAX_BYTES:
        raise DataIntegrityError(f"{path} is {size >> 20} MiB long; a manifest is never that large.")
    try:
        text = path.read_bytes().decode("ascii")
    except UnicodeDecodeError:
        raise DataIntegrityError(f"{path} holds bytes that a manifest never holds: it is damaged.") from None
    return from_json(text, str(path))


def regular_size(path: Path, missing: str) -> int:
    """Return the size of a regular file; raises DataIntegrityError when it is absent, a link or anything else."""
    try:
        status = os.lstat(path)
    except OSError:
        raise DataIntegrityError(f"{path} is missing: {missing}.") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataIntegrityError(f"{path} is a link or not a plain file; a shard folder holds plain files only.")
    return status.st_size


def _parsed(content: dict[str, Any]) -> Manifest:
    known = {f.name for f in fields(Manifest)}
    if unknown := sorted(set(content) - known):
        raise ValueError(f"unknown fields {unknown}")
    shards = tuple(ShardEntry(**entry) for entry in content.pop("shards"))
    for name in ("classes", "factors", "warnings"):
        content[name] = tuple(content[name])
    return Manifest(shards=shards, **content)


def _check_kinds(manifest: Manifest) -> None:
    """Refuse values of another kind than a builder writes; those who read a manifest rely on it."""
    shards, counts = manifest.shards, manifest.counts
    texts = [manifest.name, manifest.source, manifest.stored, manifest.fit, *manifest.classes, *manifest.factors]
    texts += [*manifest.warnings, *(text for shard in shards for text in (shard.file, shard.split, shard.sha256))]
    numbers = [
        manifest.rejected,
        manifest.channels,
        *(number for shard in shards for number in (shard.rows, shard.bytes)),
    ]
    numbers += [number for classes in counts.values() for number in classes.values()]
    numbers += [] if manifest.image_size is None else [manifest.image_size]
    if any(type(text) is not str for text in texts):
        raise ValueError("something is not text that should be")
    if any(type(number) is not int or not 0 <= number < _MAX_COUNT for number in numbers):
        raise ValueError("something is not a sensible whole number that should be")
    if not all(type(told) is dict for told in (manifest.options, manifest.created_with)):
        raise ValueError("options or versions are not listed by name")
    names = set(manifest.classes)
    if len(names) < len(manifest.classes) or any(set(classes) != names for classes in counts.values()):
        raise ValueError("a class is listed twice, or counts are not those of the classes")
    if not set(counts) <= set(SPLITS) or type(manifest.has_masks) is not bool or manifest.image_size == 0:
        raise ValueError("splits, masks or size are none that a builder writes")


def _checked(manifest: Manifest) -> Manifest:
    """Refuse what a builder never writes: foreign file names, double shards, sums that do not agree."""
    _check_kinds(manifest)
    files = [shard.file for shard in manifest.shards]
    if bad := [file for file in files if not isinstance(file, str) or not SHARD_NAME.fullmatch(file)]:
        raise ValueError(f"shard file name {bad[0]!r} is not of the form train-00000.arrow")
    if len(set(files)) != len(files):
        raise ValueError("a shard is listed twice")
    if any(not shard.file.startswith(shard.split + "-") or shard.rows < 1 for shard in manifest.shards):
        raise ValueError("a shard's split or row count is wrong")
    if manifest.stored not in STORED or manifest.channels not in (1, 3):
        raise ValueError("stored form or channels are unknown")
    if not all(FACTOR_NAME.fullmatch(name) for name in manifest.factors):
        raise ValueError("a factor name is not an identifier")
    for split in SPLITS:
        if sum(manifest.counts.get(split, {}).values()) != manifest.num_rows(split):
            raise ValueError(f"counts of the split {split} do not add up to its rows")
    return manifest
