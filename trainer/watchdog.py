"""No rank hangs unnoticed: a timer in C ends a rank that has not shown for too long that it gets on.

The timer is faulthandler's: a thread that needs no lock of the interpreter, so it also ends a rank that waits for a
file, or whose code in C never comes back. A rank shows that it gets on (`pat`) at every stage, step and block of rows.
What it is doing stands in the first line of RUN/logs/stacks-rank-RRRRR-attempt-N.txt, also after a kill; the stacks of
all threads follow when time is up. Re-arming takes 0.05 ms and is done once a second at most; other pats take 1 us.
"""

from __future__ import annotations

import faulthandler
import os
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

GRACE_S = 5.0  # a collective that misses the same deadline is to say so itself
_HEADER_BYTES = 120


@dataclass
class _Timer:
    path: Path
    file: BinaryIO
    deadline_s: float
    armed_at: float = 0.0
    armed_for_s: float = 0.0
    dumped: bool = False


_timer: _Timer | None = None


def arm(logs: Path, rank: int, attempt: int, timeout_s: float) -> None:
    """Have this process end itself `timeout_s` (and a grace) after its last `pat`; arming again replaces the file.

    Args:
        logs: folder of the file with the stacks.
        attempt: of the run, for the file's name; 0 while it is not known.
    """
    global _timer
    disarm()
    path = logs / f"stacks-rank-{rank:05d}-attempt-{attempt}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    _timer = _Timer(path, path.open("wb", buffering=0), timeout_s + GRACE_S)
    _timer.file.write(_header("start-up"))
    pat()


def _header(doing: str) -> bytes:
    text = f"{time.strftime('%H:%M:%S', time.gmtime())} during {doing}".encode()
    return text[: _HEADER_BYTES - 1].ljust(_HEADER_BYTES - 1) + b"\n"


def pat(doing: str | None = None, at_most_s: float | None = None) -> None:
    """Show that this rank gets on.

    Args:
        doing: what comes next, when it is something else than before.
        at_most_s: how long that may take without a pat, where it is more than the usual deadline.
    """
    if _timer is None:
        return
    if doing is not None and not _timer.dumped:
        with suppress(OSError):  # a full disk is no reason to end
            os.pwrite(_timer.file.fileno(), _header(doing), 0)
    patience_s = max(_timer.deadline_s, (at_most_s or 0.0) + GRACE_S)
    now = time.monotonic()
    if now - _timer.armed_at >= 1.0 or patience_s != _timer.armed_for_s:
        _timer.armed_at, _timer.armed_for_s = now, patience_s
        faulthandler.dump_traceback_later(patience_s, exit=True, file=_timer.file)


def dump(error: BaseException) -> None:
    """Write what missed its deadline and the stacks of all threads, once per attempt."""
    if _timer is None or _timer.dumped:
        return
    _timer.dumped = True
    with suppress(OSError):
        _timer.file.write("".join(traceback.format_exception(error)).encode())
        faulthandler.dump_traceback(_timer.file, all_threads=True)


def disarm() -> None:
    """Stop the timer; a file without stacks is removed."""
    global _timer
    if _timer is None:
        return
    faulthandler.cancel_dump_traceback_later()
    _timer.file.close()
    if not _timer.dumped:
        _timer.path.unlink(missing_ok=True)
    _timer = None


def verdict(logs: Path, attempt: int) -> str | None:
    """Return why ranks of an attempt ended at a deadline, or None: first the one that its timer ended, then its peers.

    For an attempt whose ranks could not tell anybody themselves.
    """
    peers = None
    for path in sorted(logs.glob(f"stacks-rank-*-attempt-{attempt}.txt")):
        doing, _, rest = path.read_text(errors="replace").partition("\n")
        if rest.startswith("Timeout ("):
            rank = int(path.name.split("-")[2])
            return f"rank {rank} got nowhere{doing[8:].rstrip()} and was ended; its stacks are in {path}"
        said = next((line for line in rest.splitlines() if "CollectiveTimeout: " in line), None)
        peers = peers or (f"{said.partition(': ')[2]}; its stacks are in {path}" if said else None)
    return peers
