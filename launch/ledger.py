"""RUN/ledger.jsonl: who may write to a run, what is durable, how attempts ended. The authority on all three.

Lines are those of `cluster.journal`: checksummed, synchronised, a torn tail cut off. Each write takes the file's lock
for its own duration. An attempt holds the lease from its `begin` until a later one begins; its number is the fencing
token (Kleppmann 2016, https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html): a checkpoint becomes
visible under the lock, after the ledger was seen to end with one's own attempt, so a writer that was paused, or
orphaned, and has been replaced, cannot commit.

Whether the holder lives is told by its process (on the same machine) and by a counter that it writes every two seconds;
nothing here reads a clock of another machine, or a file time.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import RunTaken
from cluster.journal import Journal, read_events
from data_shards.errors import UserError
from launch import history
from launch.history import Event
from launch.status import LEDGER

LAUNCH = "SUBSPACE_LAUNCH"
BEAT_S = 2.0
PATIENCE_S = 20.0  # of a newcomer that sees no beat: ten of them


class LostLease(RunTaken):
    """A later attempt has begun; this one may not write any more. Exit code 6."""


class NoProgress(UserError):
    """Restart after restart brought no newer checkpoint. Exit code 7."""

    exit_code = 7


def launch_id() -> str:
    """Return the name of the launch that this process belongs to: what its launcher says, or else its agent."""
    return os.environ.get(LAUNCH) or ":".join(map(str, _identity(os.getppid()).values()))


def _identity(pid: int) -> dict[str, Any]:
    """Return what tells a process from all others, also on other machines and after a reboot."""
    return {"machine": this_machine(), "pid": pid, "started": _started(pid)}


def _started(pid: int) -> float:
    """Return when a process began, in clock ticks since boot: a wall clock that is set does not change it."""
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return float(after_name[19])
    with suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).create_time())
    return 0.0


def this_machine() -> str:
    """Return a name for where process ids mean the same: this boot of this machine, and this container."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


class Ledger:
    """The ledger of one run folder."""

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / LEDGER

    def events(self) -> list[Event]:
        """Return what is recorded; [] for a new run.

        Raises:
            DataIntegrityError: a record is damaged.
        """
        return list(history.checked(read_events(self.path), self.path))

    @contextmanager
    def _open(self) -> Iterator[Journal]:
        journal = Journal(self.path)
        try:
            history.checked(journal.events, self.path)
            yield journal
        finally:
            journal.close()

    def take(self, launch: str) -> None:
        """Record that a launch took the folder, and name the run if it is new."""
        with self._open() as journal:
            run = history.run_id(journal.events) or uuid.uuid4().hex
            journal.append({"kind": "taken", "launch": launch, "run": run})

    def check_free(self, launch: str) -> None:
        """Raise RunTaken when an attempt of another launch is at work."""
        made = history.attempts(self.events())
        if made and made[-1].end is None and made[-1].launch != launch and self._alive(made[-1]):
            where = f"process {made[-1].owner['pid']} on {made[-1].owner['host']}"
            raise RunTaken(f"{self.run} is being trained by {where} (attempt {made[-1].number}); stop that run first")

    def _alive(self, attempt: history.Attempt) -> bool:
        """Return whether the holder of the lease lives; takes `PATIENCE_S` to be sure that it does not."""
        owner = {name: attempt.owner[name] for name in ("machine", "pid", "started")}
        if owner["machine"] == this_machine() and _identity(owner["pid"]) != owner:
            return False
        beat, deadline = self._beat(attempt.number), time.monotonic() + PATIENCE_S
        first = _content(beat)
        while time.monotonic() < deadline:
            if _content(beat) != first:
                return True
            time.sleep(0.1)
        return False

    def _beat(self, attempt: int) -> Path:
        return self.run / f".lease-{attempt}"

    def begin(self, launch: str, world_size: int, max_restarts: int) -> Lease:
        """Take the lease for a new attempt.

        Raises:
            RunTaken: an attempt of another launch is at work, or was quicker.
            NoProgress: more than `max_restarts` restarts in a row brought no newer checkpoint.
        """
        self.check_free(launch)
        seen = len(history.attempts(self.events()))
        with self._open() as journal:
            made = history.attempts(journal.events)
            if len(made) > seen and made[-1].launch != launch:
                raise RunTaken(f"{self.run} was taken by another launch at the same moment; this one stands back")
            refusal = _no_progress(made, launch, max_restarts)
            number = made[-1].number + 1 if made else 1
            if refusal is None:
                owner = {"host": socket.gethostname(), **_identity(os.getpid())}
                facts = {"attempt": number, "launch": launch, "owner": owner, "world_size": world_size}
                journal.append({"kind": "begin", **facts})
        if refusal is not None:
            self.end(made[-1].number, "failed", refusal.exit_code, str(refusal))
            raise refusal
        for old in self.run.glob(".lease-*"):
            old.unlink(missing_ok=True)
        return Lease(self, number, history.run_id(journal.events))

    def fault(self, attempt: int, rank: int, exit_code: int, reason: str) -> None:
        """Record that a rank failed, in a way that starting again may mend."""
        with self._open() as journal:
            event = {"attempt": attempt, "rank": rank, "exit_code": exit_code, "reason": reason}
            journal.append({"kind": "fault", **event})

    def end(self, attempt: int, state: str, exit_code: int, reason: str | None = None, **where: int) -> bool:
        """Record how the newest attempt ended; return False when that is on record, or a later attempt has begun."""
        with self._open() as journal:
            made = history.attempts(journal.events)
            if not made or made[-1].number != attempt or made[-1].end is not None:
                return False
            event = {"attempt": attempt, "state": state, "exit_code": exit_code, "reason": reason, **where}
            journal.append({"kind": "end", **event})
        self._beat(attempt).unlink(missing_ok=True)
        return True


class Lease:
    """The right of one attempt to write; held by rank 0, shown to be alive by a thread."""

    def __init__(self, ledger: Ledger, attempt: int, run_id: str) -> None:
        self.attempt, self.run_id = attempt, run_id
        self._ledger, self._stop = ledger, threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="lease")
        self._thread.start()

    def _live(self) -> None:
        beat, count = self._ledger._beat(self.attempt), 0
        while not self._stop.is_set():
            with suppress(OSError):  # a full disk must not take the lease away; the process itself still shows
                beat.write_text(str(count))
            count += 1
            self._stop.wait(BEAT_S)

    @contextmanager
    def committing(self) -> Iterator[Callable[[Event], None]]:
        """Hold everybody else off while a checkpoint becomes visible; yields what records it as durable.

        Raises:
            LostLease: a later attempt has begun.
        """
        with self._ledger._open() as journal:
            made = history.attempts(journal.events)
            if made[-1].number != self.attempt or made[-1].end is not None:
                raise LostLease(f"attempt {self.attempt} was replaced by attempt {made[-1].number}; it may not write")
            yield lambda facts: journal.append({"kind": "commit", "attempt": self.attempt, **facts})

    def close(self) -> None:
        """Stop showing signs of life; closing twice is fine."""
        self._stop.set()
        self._thread.join()
        self._ledger._beat(self.attempt).unlink(missing_ok=True)


def _no_progress(made: list[history.Attempt], launch: str, max_restarts: int) -> NoProgress | None:
    if max_restarts == 0 or history.fruitless_restarts(made, launch) < max_restarts:
        return None
    cause = made[-1].fault
    why = f"the last failed with: {cause['reason']}" if cause else "see train.log and logs/ in the run folder"
    return NoProgress(f"{max_restarts} restarts in a row brought no newer checkpoint; {why}")


def _content(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""
