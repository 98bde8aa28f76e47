"""JSRT radiographs (Shiraishi et al. 2000) with the masks of SCR (van Ginneken et al. 2006).

Anywhere below the folder: JPCLN001.IMG, raw, 2048 x 2048 big-endian 16-bit numbers without a header, of which high ones
are dark; and fold1/masks/left lung/JPCLN001.gif, 1024 x 1024. fold1 is training, fold2 test.

Legend: H, W height and width, 2048.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.decode import Header, UInt8Array, Unreadable, read_bytes, to_array
from data_shards.sources import archival
from data_shards.sources.folder import walk_files
from data_shards.sources.listing import Record
from data_shards.sources.published import left_out

COUNTS = dict.fromkeys(("lung", "heart", "clavicle"), (124, 123))
SIDE_PX = 2048
_PARTS = {
    "lung": ("left lung", "right lung"),
    "heart": ("heart",),
    "clavicle": ("left clavicle", "right clavicle"),
}
_FOLDS = {"fold1": "train", "fold2": "test"}
_HEADER = Header(SIDE_PX, SIDE_PX, 1, 2 * SIDE_PX**2)


def is_at(path: Path) -> bool:
    """Return whether a folder holds masks of SCR."""
    return _masks_root(path) is not None


def records(path: Path, target: str) -> tuple[list[Record], list[str]]:
    """Return the records of the scans that have all masks of the target, and notes."""
    root = _masks_root(path)
    assert root is not None
    masks: dict[str, tuple[str, list[Path]]] = {}
    for fold, split in _FOLDS.items():
        for part in _PARTS[target]:
            for file in walk_files(root / fold / "masks" / part, {".gif"}):
                masks.setdefault(file.stem.upper(), (split, []))[1].append(file)
    found, bare = [], []
    for scan in walk_files(path, {".img"}):
        split, files = masks.get(scan.stem.upper(), ("", []))
        if len(files) == len(_PARTS[target]):
            found.append(_record(scan, scan.relative_to(path).as_posix(), split, tuple(files)))
        else:
            bare.append(scan.name)
    return found, left_out("scan", bare, f"without a mask of {target}")


def _masks_root(path: Path) -> Path | None:
    return next((fold.parent.parent for fold in (*path.glob("fold1/masks"), *path.glob("*/fold1/masks"))), None)


def _record(scan: Path, name: str, split: str, masks: tuple[Path, ...]) -> Record:
    return Record(
        name,
        "",
        split,
        file=scan,
        load=partial(_load, scan),
        header=lambda: _HEADER,
        mask=partial(_mask, masks),
        mask_above=0.3,
        beside=masks,
    )


def _load(scan: Path, channels: int) -> UInt8Array:
    """Return (H, W, channels): inverted, and stretched from the least to the greatest number of the scan."""
    data = read_bytes(scan)
    if len(data) != 2 * SIDE_PX**2:
        raise Unreadable(f"{len(data):,} bytes; a raw scan of {SIDE_PX} x {SIDE_PX} pixels has {2 * SIDE_PX**2:,}")
    values = np.frombuffer(data, dtype=">i2").reshape(SIDE_PX, SIDE_PX).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise Unreadable("all pixels of the scan are equal")
    return to_array(Image.fromarray(np.rint((high - values) * (255 / (high - low))).astype(np.uint8)), channels)


def _mask(masks: tuple[Path, ...]) -> UInt8Array:
    """Return (H, W), 255 in any of the masks, whose pixels are repeated up to the size of the scan."""
    mask = archival.painted(*masks)
    times = SIDE_PX // mask.shape[0]
    if mask.shape[0] != mask.shape[1] or mask.shape[0] * times != SIDE_PX:
        raise Unreadable(f"a mask of {mask.shape[1]} x {mask.shape[0]} pixels does not fit a scan of {SIDE_PX}")
    return mask.repeat(times, axis=0).repeat(times, axis=1)
