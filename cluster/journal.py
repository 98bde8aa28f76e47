"""Append-only record of decisions: a decision is on disk before any rank may act on it.

One JSON line per record, `{"seq": n, "crc32": c, "event": {...}}`, the checksum over `n` and the event in canonical
form. A crash can only tear the last line, which is then cut off at the next open; damage anywhere else is reported,
never repaired. A file lock keeps writes apart; who held it all the time and was stopped would keep a successor out for
ever, so a controller holds it for each record only. An append that finds a file which this journal did not leave like
that is refused: a successor has written, also where locks are not honoured, or somebody replaced the file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.errors import RunTaken
from data_shards.errors import DataIntegrityError

Event = dict[str, Any]
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of filesystems; appends are checked all the same


def _canonical(event: Event) -> str:
    return json.dumps(event, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode(number: int, event: Event) -> bytes:
    """Return record `number` (counted from 0) as the line that stands in the file."""
    body = _canonical(event)
    return f'{{"seq":{number},"crc32":{_checksum(number, body)},"event":{body}}}\n'.encode()


def _checksum(number: int, body: str) -> int:
    return zlib.crc32(f"{number} {body}".encode())


def decode(line: bytes, number: int) -> Event | None:
    """Return the event of record `number`, None when the line (with or without its end) is not it."""
    try:
        record = json.loads(line)
        event = record["event"]
        sound = record["seq"] == number and record["crc32"] == _checksum(number, _canonical(event))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return event if sound and isinstance(event, dict) else None


def _decoded(content: bytes, path: Path) -> list[Event]:
    """Return the events of whole lines; raises DataIntegrityError for one that is not what was written."""
    events: list[Event] = []
    for line in content.split(b"\n")[:-1]:
        event = decode(line, len(events))
        if event is None:
            raise DataIntegrityError(
                f"Record {len(events) + 1} of {path} is damaged; restore a copy of it, or start a new run folder."
            )
        events.append(event)
    return events


def read_events(path: Path) -> list[Event]:
    """Return the records of a journal that somebody may be writing, without its lock; a torn last line is left out.

    Raises:
        DataIntegrityError: a record is damaged.
    """
    content = path.read_bytes() if path.exists() else b""
    return _decoded(content[: content.rfind(b"\n") + 1], path)


class Journal:
    """The records of one file; `events` holds what was read and appended so far, in order."""

    def __init__(self, path: Path | str, lock_timeout_s: float = 10.0, hold: bool = True) -> None:
        """Open or create the journal; `hold` keeps its lock until `close`, otherwise it is taken for each record.

        Raises RunTaken when another process holds the lock for longer than `lock_timeout_s`, DataIntegrityError when a
        record other than a torn last one is damaged.
        """
        self.path, self._lock_timeout_s, self._hold = Path(path), lock_timeout_s, hold
        self.path.parent.mkdir(parents=True, exist_ok=True)
        created = not self.path.exists()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            with self._locked(first=True):
                self.events: list[Event] = self._recover(self.path.read_bytes())
                self._size = os.fstat(self._file).st_size
        except BaseException:
            os.close(self._file)
            raise
        if created:
            self._sync_folder()

    @contextmanager
    def _locked(self, first: bool = False) -> Iterator[None]:
        if first or not self._hold:
            self._lock()
        try:
            yield
        finally:
            if not self._hold:
                self._unlock()

    def _unlock(self) -> None:
        with suppress(OSError):  # there are filesystems without locks
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _lock(self) -> None:
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return
                if not isinstance(error, BlockingIOError):
                    raise
                if time.monotonic() >= deadline:
                    raise RunTaken(f"Another process owns {self.path}; stop that run first.") from None
                time.sleep(0.05)

    def _recover(self, content: bytes) -> list[Event]:
        whole, newline, tail = content.rpartition(b"\n")
        events = _decoded(whole + newline, self.path)
        if tail:
            # Torn while being written, hence never acknowledged; a record that lacks only its end of line is written
            # again in full.
            event = decode(tail, len(events))
            os.ftruncate(self._file, len(whole + newline))
            os.fsync(self._file)
            if event is not None:
                self._write(encode(len(events), event))
                events.append(event)
        return events

    def append(self, event: Event) -> None:
        """Write one record and return once it is on disk.

        Raises RunTaken when somebody else wrote to the file, or removed or replaced it: nothing is acknowledged then.
        """
        with self._locked():
            self._check_owner()
            line = encode(len(self.events), event)
            self._write(line)
            self._size += len(line)
            self._check_owner()
            self.events.append(json.loads(_canonical(event)))

    def _check_owner(self) -> None:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        mine = os.fstat(self._file)
        if there is None or (there.st_dev, there.st_ino, there.st_size) != (mine.st_dev, mine.st_ino, self._size):
            raise RunTaken(f"{self.path} was written by another controller; this one was superseded and stops.")

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(f"Could not write all of a record to {self.path}; is the disk full?")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)  # half a record must not stand before the next one
            raise

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Give up the file and its lock; closing twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
