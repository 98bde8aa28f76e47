"""The folder DEST.building-ID that a build works in, and how an interrupted build goes on.

ID is the fingerprint of everything that decides the result, so only a build of the same thing continues there. A shard
counts as done when its record (written after it) and its sha256 agree; the last act is one rename to DEST, so DEST is
either complete or absent.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards.errors import UserError
from data_shards.files import sha256_of, sync, write_text
from data_shards.manifest import ShardEntry

_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Done:
    """A finished shard (`entry` None: none of its images was usable) and the (sample id, reason) it rejected."""

    entry: ShardEntry | None
    rejected: tuple[tuple[int, str], ...]


class Staging:
    """Where the shards of one build wait until all are there."""

    def __init__(self, dest: Path, fingerprint: str) -> None:
        """Name the folder next to `dest`; nothing is written before `open`."""
        self.dest = dest
        self.folder = dest.with_name(f"{dest.name}.building-{fingerprint[:12]}")
        self.shards = self.folder / "shards"
        self._records = self.folder / "records"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Create or continue the folder under a lock; raises UserError when it is held or the disk is full."""
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
            self._records.mkdir(exist_ok=True)
            with open(self.folder / "lock", "w") as lock:
                self._take(lock.fileno())
                yield
        except OSError as error:
            what = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
            raise UserError(
                f"Cannot write {self.dest}: {what}. Finished shards wait in {self.folder}; "
                "put that right and run the same command again to go on."
            ) from None

    def done(self, file: str) -> Done | None:
        """Return the record of a shard that is complete and undamaged, else None."""
        try:
            content = json.loads((self._records / f"{file}.json").read_text())
            rejected = tuple((int(sample), str(reason)) for sample, reason in content["rejected"])
            entry = None if content["entry"] is None else ShardEntry(**content["entry"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if entry is not None:
            path = self.shards / file
            if entry.file != file or not path.is_file() or sha256_of(path) != entry.sha256:
                return None
        return Done(entry, rejected)

    def record(self, file: str, done: Done) -> None:
        """Remember a finished shard, after its file is on the disk."""
        write_text(self._records / f"{file}.json", json.dumps(asdict(done)))

    def commit(self) -> None:
        """Rename the shards to DEST; raises UserError when something has appeared there meanwhile."""
        sync(self.shards)
        if os.path.lexists(self.dest):
            raise UserError(f"{self.dest} has appeared during the build; the new shards wait in {self.shards}.")
        os.rename(self.shards, self.dest)
        sync(self.dest.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another build is writing {self.dest} (it holds {self.folder}); wait for it.") from None


def check_disk(dest: Path, num_bytes: int) -> None:
    """Raise UserError when the disk of `dest` has less than `num_bytes` free."""
    folder = dest.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"Building {dest} needs about {num_bytes / 1e6:,.0f} MB, the disk of {folder} has {free / 1e6:,.0f} MB; "
            "free some space, or choose a smaller --size, --stored jpeg or another place."
        )
