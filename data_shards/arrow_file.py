"""An Arrow IPC file of one record batch from outside: mapped, checked, and read as views into the mapping.

Compressed buffers, which we never write, are refused before they are unpacked: 2 MB of zstd can be gigabytes of zeros.
The file is closed once it is mapped, so that many of them need few descriptors.

Legend: R rows of the batch.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_shards.errors import DataIntegrityError

_MAGIC_BYTES = 8  # ARROW1 and padding, before the stream


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write the file and make its bytes durable."""
    with open(path, "wb") as stream:
        with pa.ipc.new_file(stream, batch.schema) as writer:
            writer.write_batch(batch)
        stream.flush()
        os.fsync(stream.fileno())


def mapped(path: Path, kind: str) -> pa.Buffer:
    """Map a file; `kind` ("shard") is what the sentence of a DataIntegrityError calls it."""
    try:
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, kind, error) from None


def only_batch(path: Path, mapping: pa.Buffer, schema: pa.Schema, kind: str) -> pa.RecordBatch:
    """Return the one record batch of a file, as views into its mapping, read as the stream that an Arrow file wraps.

    Raises DataIntegrityError for anything but rows of `schema` that hold what Arrow says of them.
    """
    try:
        messages = list(pa.ipc.MessageReader.open_stream(mapping.slice(_MAGIC_BYTES)))
        if [message.type for message in messages] != ["schema", "record batch"]:
            raise DataIntegrityError(f"{path} is not a readable {kind}: it does not hold one record batch.")
        found = pa.ipc.read_schema(messages[0])
        if not found.equals(schema):
            raise DataIntegrityError(f"{path} does not have the columns of a {kind}.")
        if _is_compressed(bytes(messages[1].metadata)):
            raise DataIntegrityError(f"{path} holds compressed buffers, which a {kind} never does.")
        batch = pa.ipc.read_record_batch(messages[1], found)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, struct.error) as error:
        raise _unreadable(path, kind, error) from None
    if batch.num_rows < 1:
        raise DataIntegrityError(f"{path} holds no rows.")
    return batch


def numbers(batch: pa.RecordBatch, column: str, kind: str) -> npt.NDArray[Any]:
    """Return (R,) a copy of a column of numbers; raises DataIntegrityError when a value is missing."""
    if batch.column(column).null_count:
        raise DataIntegrityError(f"A {kind} has empty values in its column {column}.")
    # By dlpack: Arrow's own way to numpy imports pandas, where that is installed, half a second before every start.
    return np.array(np.from_dlpack(batch.column(column)))


def _unreadable(path: Path, kind: str, error: Exception) -> DataIntegrityError:
    return DataIntegrityError(f"{path} is not a readable {kind} ({' '.join(str(error).split())[:200]}).")


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
