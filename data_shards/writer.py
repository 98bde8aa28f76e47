"""Write one shard: Arrow IPC file, one record batch, under a temporary name until it is complete and on the disk.

The bytes depend only on the rows and on the library versions, so building twice gives the same sha256.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from data_shards.arrow_file import write_batch
from data_shards.files import sha256_of
from data_shards.manifest import ShardEntry
from data_shards.schema import FACTOR_PREFIX, shard_schema


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
    write_batch(temporary, pa.RecordBatch.from_arrays(arrays, schema=schema))
    entry = ShardEntry(path.name, split, len(rows), temporary.stat().st_size, sha256_of(temporary))
    os.replace(temporary, path)
    return entry


def _value(row: Row, column: str) -> object:
    if column == "crc32":
        return zlib.crc32(row.image)
    if column.startswith(FACTOR_PREFIX):
        return row.factors[column.removeprefix(FACTOR_PREFIX)]
    return getattr(row, column)
