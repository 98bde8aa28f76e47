"""One shard file, memory-mapped: its columns as numpy arrays, its images as views into the mapping.

Everything that indexes later (offsets, sizes, labels) is checked against its bounds once, on opening, and copied,
because a shard may come from elsewhere and may be rewritten while it is mapped. Compressed buffers, which we never
write, are refused before they are unpacked: 2 MB of zstd can be gigabytes of zeros. The file is closed once it is
mapped, so that many shards need few descriptors.

Legend: R rows of the shard; H, W, C height, width, channels of an image.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_shards.decode import MAX_PIXELS, UInt8Array
from data_shards.errors import DataIntegrityError
from data_shards.schema import FACTOR_PREFIX, shard_schema

_MAGIC_BYTES = 8  # ARROW1 and padding, before the stream


class ShardFile:
    """Open shard: `labels`, `sample_ids`, `heights`, `widths`, `channels`, `crcs`, `groups`, `has_mask` are (R,)."""

    def __init__(self, path: Path, factors: tuple[str, ...]) -> None:
        """Map and check `path`; raises DataIntegrityError when it is not a shard of this schema."""
        self.path = path
        mapping = _mapped(path)
        self._mapping = mapping
        batch = _only_batch(path, mapping, factors)
        self._num_rows = batch.num_rows
        self.labels = _numbers(batch, "label")
        self.sample_ids = _numbers(batch, "sample_id")
        self.heights = _numbers(batch, "height")
        self.widths = _numbers(batch, "width")
        self.channels = _numbers(batch, "channels")
        self.crcs = _numbers(batch, "crc32")
        self.groups = np.array(batch.column("group").to_pylist(), dtype=object)
        self.factors = {name: _numbers(batch, FACTOR_PREFIX + name) for name in factors}
        if not all(np.isfinite(values).all() for values in self.factors.values()):
            raise DataIntegrityError(f"{path} holds factors that are not finite numbers.")
        self.has_mask = np.asarray(batch.column("mask").is_valid())
        self.num_masks = int(self.has_mask.sum())
        self._offsets, self._values = _binary_views(batch.column("image"))
        self._paths, self._masks = _binary_views(batch.column("path")), _binary_views(batch.column("mask"))

    def __len__(self) -> int:
        return int(self._num_rows)

    def path_of(self, row: int) -> str:
        """Return where the image came from, relative to its source."""
        return _cell(self._paths, row).decode(errors="replace")

    def image_bytes(self, row: int) -> UInt8Array:
        """Return the stored bytes of one image as a view into the mapping."""
        return self._values[self._offsets[row] : self._offsets[row + 1]]

    def mask_bytes(self, row: int) -> bytes | None:
        """Return the PNG bytes of one mask, or None."""
        return _cell(self._masks, row) if self.has_mask[row] else None

    def check_size(self) -> None:
        """Raise DataIntegrityError when the file has another size than when it was opened, or is gone."""
        try:
            now = os.stat(self.path).st_size
        except OSError:
            raise DataIntegrityError(f"{self.path} disappeared while it was in use.") from None
        if now != self._mapping.size:
            raise DataIntegrityError(f"{self.path} changed its size while it was in use: somebody has rewritten it.")

    def has_sizes(self) -> bool:
        """Tell whether every image has at least one pixel, no more than the cap, and 1 or 3 channels."""
        pixels = self.heights.astype(np.int64) * self.widths
        sides = min(self.heights.min(), self.widths.min())
        return bool(sides >= 1 and pixels.max() <= MAX_PIXELS and np.isin(self.channels, (1, 3)).all())

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


def _mapped(path: Path) -> pa.Buffer:
    try:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _only_batch(path: Path, mapping: pa.Buffer, factors: tuple[str, ...]) -> pa.RecordBatch:
    """Return the one record batch of a file, as views into its mapping, read as the stream that an Arrow file wraps."""
    try:
        messages = list(pa.ipc.MessageReader.open_stream(mapping.slice(_MAGIC_BYTES)))
        if [message.type for message in messages] != ["schema", "record batch"]:
            raise DataIntegrityError(f"{path} is not a readable shard: it does not hold one record batch.")
        schema = pa.ipc.read_schema(messages[0])
        if not schema.equals(shard_schema(factors)):
            raise DataIntegrityError(f"{path} does not have the columns of a shard.")
        if _is_compressed(bytes(messages[1].metadata)):
            raise DataIntegrityError(f"{path} holds compressed buffers, which a shard never does.")
        batch = pa.ipc.read_record_batch(messages[1], schema)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, struct.error) as error:
        raise _unreadable(path, error) from None
    if batch.num_rows < 1:
        raise DataIntegrityError(f"{path} holds no rows.")
    return batch


def _unreadable(path: Path, error: Exception) -> DataIntegrityError:
    return DataIntegrityError(f"{path} is not a readable shard ({' '.join(str(error).split())[:200]}).")


def _is_compressed(message: bytes) -> bool:
    """Tell whether a record batch message has the field `compression` (Arrow's Message.fbs: Message.header is field 2,
    RecordBatch.compression field 3)."""
    header = _field(message, struct.unpack_from("<I", message)[0], 2)
    return _field(message, header + struct.unpack_from("<I", message, header)[0], 3) > 0


def _field(message: bytes, table: int, number: int) -> int:
    """Return where field `number` of the flatbuffer table at `table` is, 0 when it is absent."""
    places = table - struct.unpack_from("<i", message, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", message, places)[0]:
        return 0
    offset = int(struct.unpack_from("<H", message, places + 4 + 2 * number)[0])
    return table + offset if offset else 0


def _numbers(batch: pa.RecordBatch, column: str) -> npt.NDArray[Any]:
    if batch.column(column).null_count:
        raise DataIntegrityError(f"A shard has empty values in its column {column}.")
    return np.array(batch.column(column))


def _binary_views(column: pa.Array) -> tuple[npt.NDArray[np.int32], UInt8Array]:
    """Return a copy of the offsets of a binary or string column, and a view of its values."""
    _, offsets, values = column.buffers()
    views = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return views.copy(), np.frombuffer(values, dtype=np.uint8) if values is not None else np.empty(0, np.uint8)


def _cell(column: tuple[npt.NDArray[np.int32], UInt8Array], row: int) -> bytes:
    offsets, values = column
    return values[offsets[row] : offsets[row + 1]].tobytes()
