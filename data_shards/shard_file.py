"""One shard file, memory-mapped: its columns as numpy arrays, its images as views into the mapping.

Everything that indexes later (offsets, sizes, labels) is checked against its bounds once, on opening, because a shard
may come from elsewhere. Legend: R rows of the shard; H, W, C height, width, channels of an image.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_shards.decode import UInt8Array
from data_shards.errors import DataIntegrityError
from data_shards.schema import FACTOR_PREFIX, shard_schema


class ShardFile:
    """Open shard: `labels`, `sample_ids`, `heights`, `widths`, `channels`, `crcs`, `groups` are (R,) arrays."""

    def __init__(self, path: Path, factors: tuple[str, ...]) -> None:
        """Map and check `path`; raises DataIntegrityError when it is not a shard of this schema."""
        self.path = path
        batch = _open_batch(path, factors)
        self._batch = batch  # keeps the mapping alive
        self.labels = _numbers(batch, "label")
        self.sample_ids = _numbers(batch, "sample_id")
        self.heights = _numbers(batch, "height")
        self.widths = _numbers(batch, "width")
        self.channels = _numbers(batch, "channels")
        self.crcs = _numbers(batch, "crc32")
        self.groups = np.array(batch.column("group").to_pylist(), dtype=object)
        self.factors = {name: _numbers(batch, FACTOR_PREFIX + name) for name in factors}
        self.num_masks = batch.num_rows - batch.column("mask").null_count
        self._offsets, self._values = _binary_views(batch.column("image"))

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def path_of(self, row: int) -> str:
        """Return where the image came from, relative to its source."""
        return str(self._batch.column("path")[row].as_py())

    def image_bytes(self, row: int) -> UInt8Array:
        """Return the stored bytes of one image as a view into the mapping."""
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    def mask_bytes(self, row: int) -> bytes | None:
        """Return the PNG bytes of one mask, or None."""
        value = self._batch.column("mask")[row].as_py()
        return None if value is None else bytes(value)

    def intact(self, row: int) -> bool:
        """Tell whether the bytes of one image still have their crc32."""
        return zlib.crc32(self.image_bytes(row).data) == int(self.crcs[row])

    def is_raw(self) -> bool:
        """Tell whether every image has as many bytes as its size says."""
        sizes = self.heights.astype(np.int64) * self.widths * self.channels
        return bool(np.array_equal(np.diff(self._offsets), sizes))

    def raw_images(self, shape: tuple[int, int, int]) -> UInt8Array:
        """Return all images of a raw shard with one size as (R, H, W, C), without a copy."""
        start, stop = int(self._offsets[0]), int(self._offsets[-1])
        return self._values[start:stop].reshape(len(self), *shape)


def _open_batch(path: Path, factors: tuple[str, ...]) -> pa.RecordBatch:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.num_record_batches != 1 or not reader.schema.equals(shard_schema(factors)):
            raise DataIntegrityError(f"{path} does not have the columns of a shard.")
        batch = reader.get_batch(0)
        batch.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataIntegrityError(f"{path} is not a readable shard ({' '.join(str(error).split())[:200]}).") from None
    if batch.num_rows < 1:
        raise DataIntegrityError(f"{path} holds no rows.")
    return batch


def _numbers(batch: pa.RecordBatch, column: str) -> npt.NDArray[Any]:
    if batch.column(column).null_count:
        raise DataIntegrityError(f"A shard has empty values in its column {column}.")
    array: npt.NDArray[Any] = batch.column(column).to_numpy()
    return array


def _binary_views(column: pa.BinaryArray) -> tuple[npt.NDArray[np.int32], UInt8Array]:
    _, offsets, values = column.buffers()
    first = column.offset
    views = np.frombuffer(offsets, dtype=np.int32)[first : first + len(column) + 1]
    return views, np.frombuffer(values, dtype=np.uint8)
