"""What a run's ledger says: which attempts there were, how far each came, how the run stands. Pure functions of events.

    taken   a launch took the run folder            {launch, run}
    begin   an attempt holds the lease from here    {attempt, launch, owner, world_size}
    commit  a checkpoint is durable                 {attempt, epoch, step, checkpoint, sha256}
    fault   a rank of the attempt failed            {attempt, rank, exit_code, reason}
    end     nothing more comes of the attempt       {attempt, state, exit_code, reason, epoch, step}

A launch is one `subspace train`, one agent of torchrun, or one Ray job; it makes attempts until one of them ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.errors import DataIntegrityError

Event = dict[str, Any]
FIELDS: dict[str, dict[str, type]] = {
    "taken": {"launch": str, "run": str},
    "begin": {"attempt": int, "launch": str, "owner": dict},
    "commit": {"attempt": int, "epoch": int, "step": int, "checkpoint": str},
    "fault": {"attempt": int, "exit_code": int, "reason": str},
    "end": {"attempt": int, "state": str, "exit_code": int},
}
OWNER: dict[str, type] = {"host": str, "machine": str, "pid": int, "started": float}
TIMEOUT = 5  # the exit code of a rank that lost its peers: an echo of what another rank says


@dataclass
class Attempt:
    """One incarnation of the ranks; `end` is None while it lives, and when it died without a word."""

    number: int
    launch: str
    owner: dict[str, Any]
    committed_step: int = -1
    faults: list[Event] = field(default_factory=list)
    end: Event | None = None

    @property
    def fault(self) -> Event | None:
        """The failure that explains the others: the first that is not the loss of a peer."""
        causes = [event for event in self.faults if event["exit_code"] != TIMEOUT]
        return next(iter([*causes, *self.faults]), None)


def checked(events: Sequence[Event], path: Path) -> Sequence[Event]:
    """Return the events of a ledger if all are such as this program writes, in an order that it writes.

    Raises:
        DataIntegrityError: one is not, though its checksum is right.
    """
    begun: set[int] = set()
    for i, event in enumerate(events):
        fields = FIELDS.get(str(event.get("kind")))
        sound = fields is not None and _has(event, {"kind": str, **fields})
        if sound and event["kind"] == "begin":
            sound = _has(event["owner"], OWNER) and event["attempt"] not in begun
            begun.add(event["attempt"])
        sound = sound and (event["kind"] == "taken" or event["attempt"] in begun)
        if not sound:
            raise DataIntegrityError(f"Record {i + 1} of {path} is none that this program writes; restore a copy.")
    return events


def _has(event: Event, fields: dict[str, type]) -> bool:
    return all(type(event.get(name)) is kind for name, kind in fields.items())


def attempts(events: Sequence[Event]) -> list[Attempt]:
    """Return the attempts in order."""
    found: dict[int, Attempt] = {}
    for event in events:
        if event["kind"] == "begin":
            found[event["attempt"]] = Attempt(event["attempt"], event["launch"], event["owner"])
        elif event["kind"] == "commit":
            attempt = found[event["attempt"]]
            attempt.committed_step = max(event["step"], attempt.committed_step)
        elif event["kind"] == "fault":
            found[event["attempt"]].faults.append(event)
        elif event["kind"] == "end":
            found[event["attempt"]].end = event
    return list(found.values())


def run_id(events: Sequence[Event]) -> str:
    """Return the run's own name, given when its folder was first taken; "" before."""
    return next((str(event["run"]) for event in events if event["kind"] == "taken"), "")


def taken_by(events: Sequence[Event], launch: str) -> bool:
    """Return whether this launch took the folder already: its later attempts need not ask again."""
    return any(event["kind"] == "taken" and event["launch"] == launch for event in events)


def last_commit(events: Sequence[Event]) -> Event | None:
    """Return the newest acknowledged checkpoint."""
    return next((event for event in reversed(events) if event["kind"] == "commit"), None)


def fruitless_restarts(made: Sequence[Attempt], launch: str) -> int:
    """Return how many restarts of this launch in a row brought no newer checkpoint. Preemptions do not count.

    A new launch, by a person or a scheduler, starts counting again.
    """
    best, count, own = -1, 0, 0
    for attempt in made:
        own += attempt.launch == launch
        preempted = attempt.end is not None and attempt.end["state"] == "preempted"
        newer = attempt.committed_step > best
        best = max(best, attempt.committed_step)
        if newer or preempted or attempt.launch != launch:
            count = 0
        elif own > 1:
            count += 1
    return count


def standing(events: Sequence[Event]) -> dict[str, Any]:
    """Return the fields of status.json that the ledger decides; {} when the last attempt has not ended."""
    made = attempts(events)
    if not made or made[-1].end is None:
        return {}
    end = made[-1].end
    known: dict[str, Any] = {n: end[n] for n in ("state", "exit_code", "reason", "epoch", "step") if n in end}
    return {**known, "attempt": made[-1].number}
