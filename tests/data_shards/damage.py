"""Ways to damage shards: single bits, under an open reader or not; every function returns what it changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.reader import SplitReader


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file in place, so that those who have it mapped see it."""
    with open(path, "r+b") as stream:
        stream.seek(position)
        value = stream.read(1)[0] ^ (1 << bit)
        stream.seek(position)
        stream.write(bytes([value]))


def span_of(reader: SplitReader, row: int) -> tuple[Path, int, int]:
    """Return the file of an image and where in it its bytes begin and end."""
    shard, local = reader._locate(row)
    stored = shard.image_bytes(local)
    start = stored.__array_interface__["data"][0] - shard._mapping.address
    return shard.path, start, start + len(stored)


def spoil(reader: SplitReader, row: int, seed: int = 0) -> None:
    """Flip one bit of the stored bytes of an image, in place."""
    path, start, stop = span_of(reader, row)
    rng = np.random.default_rng([seed, row])
    before = reader._locate(row)[0].path.read_bytes()[start:stop]
    flip_bit(path, int(rng.integers(start, stop)), int(rng.integers(8)))
    assert path.read_bytes()[start:stop] != before
