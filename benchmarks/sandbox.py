"""What decoding in confined processes costs: images per second of `shards build`'s step, in the sandbox and without.

    python benchmarks/sandbox.py [rounds]

The two take turns; the ratio is that of their medians.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.decode import image_header
from data_shards.rendering import Form, render
from data_shards.sandbox import Reply, Sandbox
from data_shards.sources.listing import Record

NUM_IMAGES = 200
SIZES = {"640 x 480 -> 224 px raw": (640, 480), "160 x 120 -> 32 px raw": (160, 120)}


def photographs(folder: Path, size: tuple[int, int]) -> list[Record]:
    """Write JPEG files of this size and return their records."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(NUM_IMAGES):
        rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        rough.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        records.append(Record(f"{number}.jpg", "a", "train", file=folder / f"{number}.jpg"))
    return records


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Return clock and processor seconds, those of ended workers included."""
    began, used = time.perf_counter(), os.times()[:4]
    work()
    return time.perf_counter() - began, sum(os.times()[:4]) - sum(used)


def compare(name: str, size: tuple[int, int], rounds: int) -> None:
    form = Form(224 if size[0] > 200 else 32, "raw", "crop", 3)
    with tempfile.TemporaryDirectory() as folder:
        records = photographs(Path(folder), size)

        def step(number: int) -> Reply:
            file = records[number].file
            assert file is not None
            return render(records[number], image_header(file), form)

        def confined() -> None:
            with Sandbox(step) as sandbox:
                list(sandbox.run(range(NUM_IMAGES)))

        def here() -> None:
            list(map(step, range(NUM_IMAGES)))

        times = [(seconds(here), seconds(confined)) for _ in range(rounds)]
    for kind, index in (("clock", 0), ("processor", 1)):
        plain, sandboxed = (statistics.median(pair[index] for pair in column) for column in zip(*times, strict=True))
        speeds = f"{NUM_IMAGES / plain:.0f} images/s here, {NUM_IMAGES / sandboxed:.0f} in the sandbox"
        print(f"{name}, {kind}: {speeds}, time x {sandboxed / plain:.2f}")


if __name__ == "__main__":
    for title, pixels in SIZES.items():
        compare(title, pixels, int(sys.argv[1]) if len(sys.argv) > 1 else 9)
