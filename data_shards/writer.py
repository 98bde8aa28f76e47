"""Write one shard: Arrow IPC file, one record batch, under a temporary name until it is complete and on the disk.

The bytes depend only on the rows and on the library versions, so building twice gives the same sha256.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from data_shards.manifest import ShardEntry
from data_shards.schema import FACTOR_PREFIX, shard_schema

_HASH_BLOCK = 1 << 22


@dataclass(frozen=True)
class Row:
    """One image as it is stored; `mask` is PNG bytes, `group` "" when there is none."""

    sample_id: int
    label: int
    group: str
    path: str
    height: int
    width: int
    channels: int
    image: bytes
    mask: bytes | None = None
    factors: Mapping[str, float] = field(default_factory=dict)


def write_shard(path: Path, split: str, rows: Sequence[Row], factors: Sequence[str]) -> ShardEntry:
    """Write `rows` as the shard `path` and return its entry; an existing file is replaced only by a complete one."""
    schema = shard_schema(factors)
    arrays = [pa.array([_value(row, column.name) for row in rows], type=column.type) for column in schema]
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as stream:
        with pa.ipc.new_file(stream, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        stream.flush()
        os.fsync(stream.fileno())
    entry = ShardEntry(path.name, split, len(rows), temporary.stat().st_size, file_sha256(temporary))
    os.replace(temporary, path)
    return entry


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal text, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _value(row: Row, column: str) -> object:
    if column == "crc32":
        return zlib.crc32(row.image)
    if column.startswith(FACTOR_PREFIX):
        return row.factors[column.removeprefix(FACTOR_PREFIX)]
    return getattr(row, column)
