"""JSON lines of files that may have gigabytes: their end, a sample of the whole, or what is new; in little memory.

A run of a million steps has 130 MB of metrics.jsonl, of which people look at a screen. Lines that a crash cut short,
and such as are no objects, are left out everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from data_shards.errors import UserError
from data_shards.files import open_plain

Record = dict[str, Any]
MAX_BYTES = 1 << 40  # of files that are never read whole
TAIL_BYTES = 1 << 18  # enough for hundreds of steps and the last epoch line
EPOCH_LINE, GROWTH, ROLLBACK = b'"train": {', b'"event": "growth"', b'"event": "rollback"'
_BLOCK_BYTES = 1 << 22
_MAX_LINE_BYTES = 1 << 24  # longer ones are no lines of ours


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    """Open a file, or give None where there is none; raises UserError when it cannot be read."""
    try:
        file = open_plain(path, MAX_BYTES)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield file


def parsed(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the objects among lines."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def tail_records(path: Path, max_bytes: int = TAIL_BYTES, marker: bytes = b"") -> list[Record]:
    """Return the objects in the last `max_bytes` of a file, oldest first, of lines with `marker`; [] without a file."""
    with _opened(path) as file:
        if file is None:
            return []
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - max_bytes))
        block = file.read(max_bytes)
        return list(parsed(_lines_with(block, (marker,)) if marker else block.splitlines()))


def sampled_records(path: Path, num_places: int, bytes_each: int) -> list[list[Record]]:
    """Return the objects at so many places, evenly over a file, in order; all of a small file, in one piece."""
    with _opened(path) as file:
        if file is None:
            return []
        size = os.fstat(file.fileno()).st_size
        if size <= num_places * bytes_each:
            return [list(parsed(file.read(num_places * bytes_each).splitlines()))]
        found = []
        for place in range(num_places):
            file.seek((size - bytes_each) * place // max(num_places - 1, 1))
            found.append(list(parsed(file.read(bytes_each).splitlines())))
        return [records for records in found if records]


class Follower:
    """Reads what a growing file has got since the last look, of lines that hold one of the markers."""

    def __init__(self, path: Path, *markers: bytes) -> None:
        self.path, self.markers = path, markers
        self._file, self._offset = (0, 0), 0

    def look(self) -> tuple[bool, list[Record]]:
        """Return (the file is another one than before: forget what was read, the objects that are new)."""
        with _opened(self.path) as file:
            if file is None:
                return False, []
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            afresh = identity != self._file or status.st_size < self._offset
            if afresh:
                self._file, self._offset = identity, 0
            file.seek(self._offset)
            return afresh, list(parsed(self._marked(file, status.st_size)))

    def _marked(self, file: BinaryIO, end: int) -> Iterator[bytes]:
        """Yield whole lines up to `end`; only those with a marker are ever taken out of their block."""
        rest = b""
        while self._offset + len(rest) < end:
            block = file.read(min(_BLOCK_BYTES, end - self._offset - len(rest)))
            if not block:
                return
            block = rest + block
            whole = block.rfind(b"\n") + 1 or (len(block) if len(block) > _MAX_LINE_BYTES else 0)
            yield from _lines_with(block[:whole], self.markers)
            self._offset += whole
            rest = block[whole:]


def _lines_with(block: bytes, markers: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield the lines of a block that hold a marker, in order."""
    starts: dict[int, int] = {}
    for marker in markers:
        place = block.find(marker)
        while place >= 0:
            end = block.find(b"\n", place)
            end = len(block) if end < 0 else end
            starts[block.rfind(b"\n", 0, place) + 1] = end
            place = block.find(marker, end)
    for start in sorted(starts):
        yield block[start : starts[start]]
