"""Shards of random pixels, for benchmarks that need images of a size and not what they show; numpy and Arrow only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.files import write_text
from data_shards.manifest import MANIFEST_NAME, Manifest, to_json
from data_shards.writer import Row, write_shard


def write_random_shards(folder: Path, counts: tuple[int, int], num_classes: int, size: int, channels: int) -> None:
    """Write raw shards of `counts` training and validation images of `size` pixels, classes in turn."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    entries, tables, first = [], {}, 0
    classes = tuple(f"class{c:04d}" for c in range(num_classes))
    for split, number in zip(("train", "validation"), counts, strict=True):
        pixels = random.integers(0, 256, (number, size, size, channels), dtype=np.uint8)
        rows = [
            Row(first + i, i % num_classes, "", f"{first + i}.png", size, size, channels, pixels[i].tobytes())
            for i in range(number)
        ]
        entries.append(write_shard(folder / f"{split}-00000.arrow", split, rows, ()))
        held = np.bincount(np.arange(number) % num_classes, minlength=num_classes)
        tables[split] = {name: int(count) for name, count in zip(classes, held, strict=True)}
        first += number
    manifest = Manifest("random", "random", "raw", size, channels, classes, tuple(entries), tables)
    write_text(folder / MANIFEST_NAME, to_json(manifest))
