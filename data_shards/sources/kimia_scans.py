"""Kimia_Path24.h5: 24 whole scans, from which training patches are cut, and 1,325 test patches.

    /scan{i}/data        (rows, columns) or (rows, columns, 3) uint8; /scan{i}/thumbnail is not read
    /test_data/patches   (n, side, side) or (n, side, side, 3) uint8, side 1000 = 0.5 mm
    /test_data/targets   (n,) the scan of each

Training patches lie on a grid. Those that touch a whitened square (whitened.py) are left out, and those with too little
tissue. A pixel is tissue when its darkest channel is below 220: the background of these bright-field scans is near
white, and a fixed shade, unlike one that is found in each scan, cannot call half of a scan background that has none.
The paper leaves out patches by their homogeneity instead, so numbers of training patches differ from others'.

The file has 29 GB, so a scan is read once in bands of rows to choose the patches, and a patch when it is stored. Both
are done in the sandbox; the parent process never opens the file.

Legend: p side of a patch, G_y x G_x places of the grid of a scan, N patches that are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_shards.decode import Header, UInt8Array, Unreadable, check_size, to_array
from data_shards.errors import UserError
from data_shards.sandbox import Limits, Reply, Sandbox
from data_shards.sources.grid import Grid, ScanGrid
from data_shards.sources.hdf5 import open_file, plain_dataset
from data_shards.sources.listing import Record

if TYPE_CHECKING:
    import h5py

MAX_SIDE = 1 << 18
MAX_SCAN_PIXELS = 1 << 33
MAX_TESTS = 50_000
_BAND_BYTES = 64 << 20
_SCAN_SECONDS = 3600  # 1.2 GB from a slow disk, and all of its pixels looked at


@dataclass(frozen=True)
class _Tests:
    """The test patches: the scan of each, side and channels."""

    scans: list[int]
    side: int
    channels: int


def list_scans(path: Path, classes: tuple[str, ...], grid: Grid) -> tuple[list[Record], list[str]]:
    """Return train and test records of the file of scans, and notes; raises UserError when it cannot be used."""
    try:
        import h5py  # noqa: F401 - before workers are forked, so that none has to
    except ImportError:
        raise UserError("Reading the scans of Kimia Path24 needs h5py: pip install 'subspace-trainer[wsi]'.") from None
    scans = len(classes)
    ((facts, _),) = _asked(path, lambda _: (_layout(path, scans), b""), [0], Limits())
    tests = _Tests(**facts["tests"])
    numbers = [int(number) for number in facts["scans"]]
    replies = _asked(path, lambda scan: _chosen(path, scan, grid, tests.side), numbers, Limits(seconds=_SCAN_SECONDS))
    records, notes, whole = [], _notes(grid, tests), []
    for scan, (found, blob) in zip(numbers, replies, strict=True):
        header = Header(grid.patch, grid.patch, found["channels"], grid.patch**2 * found["channels"])
        for x, y in np.frombuffer(blob, dtype=np.int64).reshape(-1, 2).tolist():
            box = (y, y + grid.patch, x, x + grid.patch)
            records.append(_record(path, f"scan{scan}", f"#x={x},y={y}", classes[scan], "train", header, box))
        whole += [f"scan{scan}"] if scan in tests.scans and not found["num_whitened"] else []
    header = Header(tests.side, tests.side, tests.channels, tests.side**2 * tests.channels)
    for number, scan in enumerate(tests.scans):
        records.append(_record(path, f"scan{scan}", f"#test={number}", classes[scan], "test", header, (number,)))
    if whole:
        notes.append(f"No whitened squares in {', '.join(whole)}: training patches may show what test patches show.")
    return records, notes


def _asked(path: Path, step: Callable[[int], Reply], items: list[int], limits: Limits) -> list[Reply]:
    """Return what the sandbox answers for the items; raises UserError with the first reason that it cannot."""
    with Sandbox(step, limits=limits) as sandbox:
        replies = []
        for found in sandbox.run(items):
            if isinstance(found, Unreadable):
                raise UserError(f"{path} cannot be used: {found}.")
            replies.append(found)
        return replies


def _notes(grid: Grid, tests: _Tests) -> list[str]:
    notes = []
    if grid.patch != tests.side:
        notes.append(f"Training patches have {grid.patch} pixels, test patches {tests.side}: they differ in scale.")
    if grid.stride < grid.patch:
        notes.append("Training patches overlap: some pixels of validation images are in training images, too.")
    return notes


def _record(path: Path, scan: str, place: str, label: str, split: str, header: Header, box: tuple[int, ...]) -> Record:
    """Return the record of a patch: `box` is (top, bottom, left, right) in the scan, or (number of the test patch,)."""
    name = "test_data/patches" if split == "test" else f"{scan}/data"
    load = partial(_load, path, name, box)
    return Record(scan + place, label, split, file=path, header=lambda: header, load=load)


# -- in the sandbox


def _layout(path: Path, num_scans: int) -> dict[str, Any]:
    """Return which scans there are and what the test patches are, from the headers; raises Unreadable."""
    with open_file(path) as file:
        there = [scan for scan in range(num_scans) if file.get(f"scan{scan}", getlink=True) is not None]
        if not there:
            raise Unreadable("it has no /scan0, /scan1 and so on")
        for scan in there:
            _image_shape(plain_dataset(file, f"scan{scan}/data", "u"), "scan")
        num, side, other, channels = _image_shape(plain_dataset(file, "test_data/patches", "u"), "patches")
        targets = plain_dataset(file, "test_data/targets", "iuf")
        if side != other or num > MAX_TESTS or targets.size != num:
            raise Unreadable(f"{targets.size} targets for {num} test patches of {other} x {side} pixels make no sense")
        check_size(side, side)
        scans = np.asarray(targets[...]).reshape(-1)
        if not np.isin(scans, there).all():
            raise Unreadable("a test patch is of a scan that the file does not have")
        return {"scans": there, "tests": {"scans": scans.astype(int).tolist(), "side": side, "channels": channels}}


def _image_shape(data: h5py.Dataset, what: str) -> tuple[int, int, int, int]:
    """Return (images, rows, columns, channels) of stacked images ("patches") or of one ("scan"); raises Unreadable."""
    shape = tuple(int(side) for side in data.shape)
    num, sides = (shape[0] if shape else 0, shape[1:]) if what == "patches" else (1, shape)
    channels = sides[2] if len(sides) == 3 else 1
    if data.dtype != np.uint8 or len(sides) not in (2, 3) or channels not in (1, 3):
        raise Unreadable(f"{data.name} is not {what} of 8-bit gray or RGB pixels, but {data.dtype} of shape {shape}")
    if min(sides[:2]) < 1 or max(sides[:2]) > MAX_SIDE or sides[0] * sides[1] > MAX_SCAN_PIXELS:
        raise Unreadable(f"{data.name} states {sides[1]} x {sides[0]} pixels, which no scan has")
    return num, sides[0], sides[1], channels


def _chosen(path: Path, scan: int, grid: Grid, square: int) -> Reply:
    """Return {channels, whitened} of a scan, and (N, 2) int64 x and y of its training patches."""
    with open_file(path) as file:
        data = plain_dataset(file, f"scan{scan}/data", "u")
        _, rows, columns, channels = _image_shape(data, "scan")
        choice = ScanGrid(rows, columns, grid, square)
        step = max(1, _BAND_BYTES // (columns * channels))
        for top in range(0, rows, step):
            band = data[top : top + step]
            choice.feed(band.min(axis=2) if band.ndim == 3 else band)
    return {"channels": channels, "num_whitened": choice.num_whitened}, choice.kept().tobytes()


def _load(path: Path, name: str, box: tuple[int, ...], channels: int) -> UInt8Array:
    with open_file(path) as file:
        data = plain_dataset(file, name, "u")
        pixels: npt.NDArray[np.uint8] = data[box[0]] if len(box) == 1 else data[box[0] : box[1], box[2] : box[3]]
    return to_array(Image.fromarray(pixels), channels)
