"""Read a shard folder: labels and groups of a split as arrays, images by row, memory-mapped and checked.

The sha256 of a shard is verified before its first use and remembered per file identity (device, inode, size, times of
change), so opening the same folder again costs nothing and a file rewritten in between is hashed again; the crc32 of
an image is checked whenever it is read, also where whole files are not (`verify` False). A file that changes its size
is found before it is touched: reading a mapping beyond the end of its file would kill the process.

Legend: S rows of a split, N rows asked for, H, W, C height, width, channels (1 or 3) of an image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_shards.decode import UInt8Array, Unreadable, decode_stored
from data_shards.errors import DataIntegrityError, UserError, nearest_of
from data_shards.files import sha256_of
from data_shards.manifest import Manifest, ShardEntry, read_manifest, regular_size
from data_shards.schema import SPLITS
from data_shards.shard_file import ShardFile

_verified: dict[tuple[int, ...], str] = {}


class CorruptImage(DataIntegrityError):
    """One image is not what was written, or cannot be decoded; `row` is its row in the split."""

    row = -1

    @classmethod
    def at(cls, row: int, text: str) -> CorruptImage:
        error = cls(text)
        error.row = row
        return error


def open_shards(folder: Path | str, verify: bool = True) -> ShardFolder:
    """Open a shard folder; raises UserError when there is none, DataIntegrityError when its manifest is damaged."""
    path = Path(folder)
    return ShardFolder(path, read_manifest(path), verify)


def check_shard(folder: Path, entry: ShardEntry) -> None:
    """Compare a shard file with its manifest entry: plain file, size, sha256; raises DataIntegrityError."""
    path = folder / entry.file
    size = regular_size(path, missing="a shard that the manifest lists is gone; build the folder again")
    if size != entry.bytes:
        raise DataIntegrityError(f"{path} has {size} bytes instead of {entry.bytes}; build the folder again.")
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if identity not in _verified:
        _verified[identity] = sha256_of(path)
    if _verified[identity] != entry.sha256:
        raise DataIntegrityError(
            f"{path} does not match its sha256: the file is damaged; "
            f"'subspace shards verify {folder}' names the images."
        )


class ShardFolder:
    """An open shard folder: `manifest`, `path`, and its splits."""

    def __init__(self, path: Path, manifest: Manifest, verify: bool) -> None:
        """Use `open_shards`."""
        self.path = path
        self.manifest = manifest
        self._verify = verify

    def split(self, name: str, kind: Callable[..., SplitReader] | None = None) -> SplitReader:
        """Return the reader (of another kind) of one split; raises UserError naming the splits that exist."""
        if name not in self.manifest.splits:
            there = ", ".join(self.manifest.splits) or "none"
            empty = "has no images" if name in SPLITS else f"does not exist{nearest_of(name, list(SPLITS))}"
            raise UserError(f"The split '{name}' of {self.path} {empty}; splits with images: {there}.")
        return (kind or SplitReader)(self.path, self.manifest, name, self._verify)


class SplitReader:
    """Rows of one split, in the order of the source listing; can be pickled into loader workers.

    A bad image raises CorruptImage here; `bad` and `admit` are for readers that go on (data_shards/quarantine.py).
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str, verify: bool = True) -> None:
        """Use `ShardFolder.split`; reads the columns of every shard, image bytes stay on the disk."""
        self.name = name
        self.classes = manifest.classes
        self._folder, self._manifest, self._verify = folder, manifest, verify
        self._entries = manifest.shards_of(name)
        self._open()
        shards = self._shards
        self.labels: npt.NDArray[np.int32] = np.concatenate([shard.labels for shard in shards])
        self.sample_ids: npt.NDArray[np.int64] = np.concatenate([shard.sample_ids for shard in shards])
        self.groups: npt.NDArray[np.object_] = np.concatenate([shard.groups for shard in shards])
        self.factors = {key: np.concatenate([shard.factors[key] for shard in shards]) for key in manifest.factors}
        self.has_masks = any(shard.num_masks for shard in shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self._kept = np.arange(len(self.labels))  # row -> its place in the shards, one after the other
        self._shape = self._common_shape()
        self.bad: dict[int, str] = {}  # row -> why it was replaced

    def __len__(self) -> int:
        return len(self.labels)

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        """Forget all rows but these, which are rows 0, 1, ... from now on; sample ids stay what they are."""
        self._kept = self._kept[rows]
        self.labels, self.sample_ids, self.groups = self.labels[rows], self.sample_ids[rows], self.groups[rows]
        self.factors = {key: values[rows] for key, values in self.factors.items()}
        self.has_masks = len(self.masked_rows()) > 0

    def admit(self, found: Mapping[int, str], tell: bool = True) -> None:
        """Take note of rows that a copy of this reader has replaced: none."""

    def image(self, row: int, min_size: tuple[int, int] | None = None) -> UInt8Array:
        """Return (H, W, C) uint8; raw images are read-only views. Raises CorruptImage.

        With `min_size` (height, width) a JPEG may come DCT-scaled, never below it.
        """
        shard, local = self._locate(row)
        self._check(shard, [local], [row])
        size = (int(shard.heights[local]), int(shard.widths[local]), int(shard.channels[local]))
        data = shard.image_bytes(local)
        if self._manifest.stored == "raw":
            return data.reshape(size)
        try:
            return decode_stored(data, *size, min_size)
        except Unreadable as reason:
            raise self._corrupt(shard, local, row, str(reason)) from None

    def images(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> UInt8Array:
        """Return (N, H, W, C) uint8; raises CorruptImage, or UserError unless every image of the split has one size."""
        if self._shape is None:
            raise UserError(f"Images of the split '{self.name}' of {self._folder} differ in size; build with --size N.")
        wanted = np.asarray(rows, dtype=np.int64)
        if self._manifest.stored != "raw":
            return np.stack([self.image(int(row)) for row in wanted])
        result = np.empty((len(wanted), *self._shape), dtype=np.uint8)
        owners, places = self._places(wanted)
        for index in np.unique(owners):
            shard, here = self._shards[index], np.flatnonzero(owners == index)
            self._check(shard, places[here].tolist(), wanted[here].tolist())
            if len(here) == len(wanted):
                return shard.raw_images(self._shape)[places]
            result[here] = shard.raw_images(self._shape)[places[here]]
        return result

    def uniform_shape(self) -> tuple[int, int, int] | None:
        """Return (H, W, C) when every image of the split has it, else None."""
        return self._shape

    def mask(self, row: int) -> UInt8Array | None:
        """Return the (H, W) uint8 mask of one image, or None when it has none. Raises CorruptImage."""
        shard, local = self._locate(row)
        shard.check_size()
        data = shard.mask_bytes(local)
        if data is None:
            return None
        try:
            return decode_stored(data, int(shard.heights[local]), int(shard.widths[local]), 1, None)[..., 0]
        except Unreadable as reason:
            raise self._corrupt(shard, local, row, f"its mask {reason}") from None

    def masked_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows whose image has a mask, ascending; no mask is read."""
        return np.flatnonzero(np.concatenate([shard.has_mask for shard in self._shards])[self._kept])

    def path(self, row: int) -> str:
        """Return where an image came from, relative to its source."""
        shard, local = self._locate(row)
        return shard.path_of(local)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._shards = []
        for entry in self._entries:
            if self._verify:
                check_shard(self._folder, entry)
            shard = ShardFile(self._folder / entry.file, self._manifest.factors)
            if len(shard) != entry.rows:
                raise DataIntegrityError(f"{shard.path} has {len(shard)} rows, the manifest says {entry.rows}.")
            if shard.labels.min() < 0 or shard.labels.max() >= len(self.classes):
                raise DataIntegrityError(f"{shard.path} holds labels outside the {len(self.classes)} classes.")
            if not shard.has_sizes():
                raise DataIntegrityError(f"{shard.path} holds images of impossible size.")
            if self._manifest.stored == "raw" and not shard.is_raw():
                raise DataIntegrityError(f"{shard.path} holds images that are not raw pixels of their stated size.")
            self._shards.append(shard)

    def _places(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return for (N,) rows the number of the shard that holds each, and its place there."""
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"row {rows.min()}..{rows.max()} of a split with {len(self)} rows")
        places = self._kept[rows]
        owners = np.searchsorted(self._starts, places, side="right") - 1
        return owners, places - self._starts[owners]

    def _locate(self, row: int) -> tuple[ShardFile, int]:
        owners, places = self._places(np.array([row]))
        return self._shards[owners[0]], int(places[0])

    def _check(self, shard: ShardFile, local: list[int], rows: list[int]) -> None:
        """Raise CorruptImage for the first of some images (`local` in the shard, `rows` of the split) that changed."""
        shard.check_size()
        for place, row in zip(local, rows, strict=True):
            if not shard.intact(place):
                reason = "it does not match its crc32: the file changed after it was opened"
                raise self._corrupt(shard, place, row, reason)

    def _corrupt(self, shard: ShardFile, local: int, row: int, reason: str) -> CorruptImage:
        sample = int(shard.sample_ids[local])
        return CorruptImage.at(row, f"Image {sample} ({shard.path_of(local)}) in {shard.path} is bad: {reason}.")

    def _common_shape(self) -> tuple[int, int, int] | None:
        sizes = {
            size
            for shard in self._shards
            for size in zip(shard.heights.tolist(), shard.widths.tolist(), shard.channels.tolist(), strict=True)
        }
        return sizes.pop() if len(sizes) == 1 else None
