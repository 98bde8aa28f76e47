"""What one row of a shard holds, and the few names that every part agrees on.

A shard is one Arrow IPC *file* with a single record batch, so that a column is one contiguous, memory-mapped buffer:
raw images of one size are then a (rows, H, W, C) array without a copy, and any row is reached in constant time.

Legend: H, W, C height, width, channels of one image (C is 1 or 3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from data_shards.errors import UserError, nearest_of

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")
STORED = ("raw", "png", "jpeg", "as-is")
FITS = ("crop", "pad", "stretch")
FACTOR_PREFIX = "factor_"
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-[0-9]{{5}}\.arrow")
FACTOR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

_SPLIT_WORDS = {
    **{split: split for split in SPLITS},
    "training": "train",
    **dict.fromkeys(("val", "valid", "dev"), "validation"),
    "testing": "test",
}
_COLUMNS = [
    ("sample_id", pa.int64()),
    ("label", pa.int32()),
    ("group", pa.string()),
    ("path", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("channels", pa.int32()),
    ("image", pa.binary()),
    ("crc32", pa.uint32()),
    ("mask", pa.binary()),
]


def shard_schema(factors: Sequence[str]) -> pa.Schema:
    """Return the Arrow schema of a shard with one float32 column `factor_NAME` per name in `factors`."""
    columns = [pa.field(name, kind, nullable=name == "mask") for name, kind in _COLUMNS]
    return pa.schema([*columns, *(pa.field(FACTOR_PREFIX + name, pa.float32(), nullable=False) for name in factors)])


def known_split(word: str) -> str | None:
    """Return the split that `word` means ("val", "valid", "dev" are validation), or None when it is no split name."""
    return _SPLIT_WORDS.get(word.strip().lower())


def split_name(word: str, where: str) -> str:
    """Return the split that `word` means; raises UserError naming `where` it was found."""
    split = known_split(word)
    if split is None:
        raise UserError(
            f"{where}: '{word}' is not a split{nearest_of(word, sorted(_SPLIT_WORDS))}; use {', '.join(SPLITS)}."
        )
    return split
