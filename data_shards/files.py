"""Files that survive a power cut: written beside their place, synchronised, renamed. The one mechanism for it.

And the one way to open what somebody else may have put there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, durable.

    Some network filesystems refuse to synchronise a folder; a rename in it is atomic all the same.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a small UTF-8 file atomically and durably; a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal text, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_plain(path: Path, max_bytes: int, *, follow: bool = False) -> BinaryIO:
    """Open a file from outside for reading, once it is known to be a plain one that is not absurdly large.

    Never waits: a pipe or a device is refused, not read. `follow` lets the last part of the path be a link.

    Raises:
        OSError: there is none, it may not be read, or it is none of ours; `strerror` says which, for a sentence.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except ValueError:
        raise OSError(errno.EINVAL, "its name holds a null byte") from None
    except OSError as error:
        if error.errno == errno.ELOOP and not follow:
            raise OSError(errno.EINVAL, "it is a link, not a plain file") from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file")
    if status.st_size > max_bytes:
        os.close(descriptor)
        raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, and {max_bytes:,} are the most that make sense")
    return os.fdopen(descriptor, "rb")
