"""Tensors from files that somebody else may have written: safetensors by limits of our own, and files of weights.

A safetensors file is 8 bytes (length of the header, little endian), the header (JSON: name -> dtype, shape, byte range)
and the bytes. Everything the header claims is checked against the size of the file before any memory is taken, so what
a hostile file costs is bounded by its own size; then the bytes go straight into the tensors. No other parser sees it.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from data_shards.errors import DataIntegrityError, UserError
from data_shards.files import open_plain

MAX_BYTES = 64 << 30
MAX_WEIGHTS_BYTES = 8 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMS = 16
MARKS = {b"{": 1, b"[": 2, b":": 5, b",": 16}  # of JSON, at most so many per tensor
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class Slot(NamedTuple):
    """Where one tensor is: bytes [begin, end) after the header."""

    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_tensors(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Read a safetensors file; every tensor has memory of its own.

    Raises:
        DataIntegrityError: there is none, it is no plain file, or its header claims what cannot be.
    """
    try:
        with open_plain(path, max_bytes) as file:
            return {slot.name: _filled(file, slot) for slot in _slots(file)}
    except OSError as error:
        raise DataIntegrityError(f"cannot read the tensors in {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataIntegrityError(f"{path} is no sound safetensors file: {error}") from None


def _slots(file: BinaryIO) -> list[Slot]:
    """Return the checked header, in the order of the bytes; the file stands at the first of them."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    entries = _header(file.read(length))
    slots = sorted(_slot(name, entry) for name, entry in entries.items() if name != "__metadata__")
    position = 0
    for slot in slots:
        if slot.begin != position:
            raise ValueError(f"the bytes of {slot.name!r:.80} overlap those before, or leave a gap")
        position = slot.end
    if position != size - 8 - length:
        raise ValueError(f"{size - 8 - length:,} bytes follow the header, which speaks of {position:,}")
    return slots


def _header(text: bytes) -> dict[str, Any]:
    # Counted before it is parsed, since parsed JSON takes up to forty times its bytes.
    if any(text.count(mark) > per_tensor * MAX_TENSORS + 2 for mark, per_tensor in MARKS.items()):
        raise ValueError(f"more than {MAX_TENSORS:,} tensors")
    entries = json.loads(text, object_pairs_hook=_without_duplicates)
    if not isinstance(entries, dict):
        raise ValueError("its header is no object")
    return entries


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _slot(name: str, entry: Any) -> Slot:
    what = f"tensor {name!r:.80}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} lacks dtype, shape or data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{what} has the unknown dtype {kind!r:.80}")
    if not _counts(shape) or len(shape) > MAX_DIMS or math.prod(max(side, 1) for side in shape) >= 1 << 63:
        raise ValueError(f"{what} has an impossible shape")
    if not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{what} has impossible offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[kind].itemsize:
        raise ValueError(f"{what} has a shape that does not fit its bytes")
    return Slot(begin, end, name, DTYPES[kind], tuple(shape))


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _filled(file: BinaryIO, slot: Slot) -> Tensor:
    value = torch.empty(slot.shape, dtype=slot.dtype)
    content = value.reshape(-1).view(torch.uint8)
    if value.numel() and file.readinto(content.numpy()) != slot.end - slot.begin:  # type: ignore[attr-defined]
        raise ValueError("it became shorter while it was read")
    if slot.dtype == torch.bool and value.numel() and content.max() > 1:
        raise ValueError(f"tensor {slot.name!r:.80} has truth values that are neither 0 nor 1")
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors or .pth file as a flat dictionary of tensors; nothing in it is executed.

    Raises:
        UserError: it is none.
    """
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path.resolve(), max_bytes=MAX_WEIGHTS_BYTES)
        with open_plain(path, MAX_WEIGHTS_BYTES, follow=True) as file:
            return _checked(_unpickled(path, file))
    except UserError as error:
        raise UserError(f"{path} holds no readable weights: {error}") from None
    except Exception as error:  # torch.load raises a dozen types for a damaged or foreign file
        raise UserError(f"{path} holds no readable weights ({type(error).__name__})") from None


def _unpickled(path: Path, file: BinaryIO) -> Any:
    """Load with torch's restricted unpickler; it was broken before (CVE-2025-32434, CVE-2026-24747): hence limits."""
    zipped = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    # Mapped, a compressed archive is refused: it could unpack to a thousand times its size.
    return torch.load(path if zipped else file, map_location="cpu", weights_only=True, mmap=zipped)


def _checked(state: Any) -> dict[str, Tensor]:
    """Refuse all but named, dense tensors that have as many bytes as they claim."""
    if not isinstance(state, dict):
        raise UserError("it is no dictionary of tensors")
    for name, value in state.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in DTYPES.values()
        if not isinstance(name, str) or not dense or value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise UserError(f"{name!r:.80} in it is no plain tensor; give a state dict and nothing around it")
    return {name: value.detach().clone() for name, value in state.items()}
