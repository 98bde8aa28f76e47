"""One shard file, memory-mapped: its columns as numpy arrays, its images as views into the mapping.

Everything that indexes later (offsets, sizes, labels) is checked against its bounds once, on opening, and copied,
because a shard may come from elsewhere and may be rewritten while it is mapped.

Legend: R rows of the shard; H, W, C height, width, channels of an image.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_shards.arrow_file import mapped, numbers, only_batch
from data_shards.decode import MAX_PIXELS, UInt8Array
from data_shards.errors import DataIntegrityError
from data_shards.schema import FACTOR_PREFIX, shard_schema

_KIND = "shard"


class ShardFile:
    """Open shard: `labels`, `sample_ids`, `heights`, `widths`, `channels`, `crcs`, `groups`, `has_mask` are (R,)."""

    def __init__(self, path: Path, factors: tuple[str, ...]) -> None:
        """Map and check `path`; raises DataIntegrityError when it is not a shard of this schema."""
        self.path = path
        mapping = mapped(path, _KIND)
        self._mapping = mapping
        batch = only_batch(path, mapping, shard_schema(factors), _KIND)
        self._num_rows = batch.num_rows
        self.labels = numbers(batch, "label", _KIND)
        self.sample_ids = numbers(batch, "sample_id", _KIND)
        self.heights = numbers(batch, "height", _KIND)
        self.widths = numbers(batch, "width", _KIND)
        self.channels = numbers(batch, "channels", _KIND)
        self.crcs = numbers(batch, "crc32", _KIND)
        self.groups = np.array(batch.column("group").to_pylist(), dtype=object)
        self.factors = {name: numbers(batch, FACTOR_PREFIX + name, _KIND) for name in factors}
        if not all(np.isfinite(values).all() for values in self.factors.values()):
            raise DataIntegrityError(f"{path} holds factors that are not finite numbers.")
        self.has_mask = np.from_dlpack(batch.column("mask").is_valid().cast(pa.uint8())).astype(bool)
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


def _binary_views(column: pa.Array) -> tuple[npt.NDArray[np.int32], UInt8Array]:
    """Return a copy of the offsets of a binary or string column, and a view of its values."""
    _, offsets, values = column.buffers()
    views = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return views.copy(), np.frombuffer(values, dtype=np.uint8) if values is not None else np.empty(0, np.uint8)


def _cell(column: tuple[npt.NDArray[np.int32], UInt8Array], row: int) -> bytes:
    offsets, values = column
    return values[offsets[row] : offsets[row + 1]].tobytes()
