"""digits - scikit-learn's 1,797 real scans of handwritten digits (8 x 8, 17 shades), for trying things out offline.

Alpaydin and Kaynak 1998, https://archive.ics.uci.edu/dataset/80. Shades 0..16 become 0..255; the build scales the scans
to its size (32 when none is given).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from data_shards.decode import Header, UInt8Array
from data_shards.errors import UserError
from data_shards.sources.listing import Listing, Record
from data_shards.sources.splits import assign

DEFAULT_SIZE = 32


def read(path: Path | None = None, *, validation: float = 0.2, test: float = 0.2, seed: int = 0) -> Listing:
    """List the scans; the split is drawn by class: 60 % train, 20 % validation, 20 % test."""
    from sklearn.datasets import load_digits

    if path is not None:
        raise UserError("The source 'digits' takes no path; the scans come with scikit-learn.")
    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)[..., None]
    header = Header(8, 8, 1, 64)
    records = [
        Record(f"digit-{index:04d}", str(label), "", load=partial(_load, pixels[index]), header=lambda: header)
        for index, label in enumerate(scans.target)
    ]
    splits = assign(records, {"validation": validation, "test": test}, seed)
    return Listing("digits", tuple("0123456789"), tuple(splits), default_size=DEFAULT_SIZE)


def _load(scan: UInt8Array, channels: int) -> UInt8Array:
    return scan if channels == 1 else np.repeat(scan, 3, axis=2)
