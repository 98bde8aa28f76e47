"""status.json: what a run is doing, for people, schedulers and other programs.

torchrun, Ray and Slurm do not pass exit codes through (each turns 3, 75 and 143 into 1), so the outcome of a run is
this file. It is replaced whole (write, fsync, rename), so a reader never sees half of it. How an attempt ended is
decided by the ledger (launch/ledger.py), which outlives a status that could not be written.
`python -m launch.status RUN [FIELD]` prints the state word, or another field, alone, for batch scripts; it imports
nothing heavy, since a requeue hook may have seconds. What people look at is in launch/glance.py and status_view.py.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.journal import read_events
from data_shards.errors import UserError, printable
from data_shards.files import open_plain, write_text
from launch import history

LEDGER = "ledger.jsonl"
STATES = ("running", "completed", "preempted", "failed")
FIELDS = ("state", "phase", "epoch", "step", "num_subspaces", "world_size", "attempt", "exit_code", "reason", "time")
_MAX_BYTES = 1 << 20


def read_status(run: Path | str) -> dict[str, Any]:
    """Return RUN/status.json, set right by the ledger where a process died before it could write both.

    Raises:
        UserError: the folder or its status.json does not exist, or is not the status of a run.
    """
    ledger = Path(run) / LEDGER
    ended = history.standing(history.checked(read_events(ledger), ledger))
    try:
        status = _stored(run)
    except UserError:
        if not ended:
            raise
        status = {**dict.fromkeys(FIELDS), **ended}
    if ended and (ended["state"] == "completed" or status["state"] == "running"):
        status.update(ended, phase=None)
    return status


def _stored(run: Path | str) -> dict[str, Any]:
    path = Path(run) / "status.json"
    try:
        with open_plain(path, _MAX_BYTES) as file:
            status = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is not a run folder: it has no status.json; give the folder of a run") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); the run's log is in {Path(run) / 'train.log'}") from None
    if not isinstance(status, dict) or status.get("state") not in STATES:
        raise UserError(f"{path} has no state of {', '.join(STATES)}; it was not written by this program")
    return status


def known_status(run: Path | str) -> dict[str, Any]:
    """Return RUN/status.json, or {} for a run that has none yet."""
    return read_status(run) if (Path(run) / "status.json").exists() else {}


def write_status(run: Path | str, **fields: Any) -> dict[str, Any]:
    """Update RUN/status.json with `fields` atomically and return the whole.

    Fields not named keep their value, except that a state that is named clears `phase`, and `state="running"` also
    `exit_code` and `reason` of the attempt before. `phase` is what a running run is busy with: clustering, training,
    validation or final scores; None while it starts. `time` (seconds since the epoch) is set here. Only one process
    of a run, rank 0 or the launcher, writes.

    Raises:
        ValueError: an unknown field or state.
    """
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ValueError(f"status.json has no field {unknown[0]!r}; fields: {', '.join(FIELDS)}")
    path = Path(run) / "status.json"
    status: dict[str, Any] = dict.fromkeys(FIELDS)
    with suppress(UserError):  # the first write, or a damaged file that this write heals
        status.update(_stored(run))
    if "state" in fields:
        status.update(phase=None)
    if fields.get("state") == "running":
        status.update(exit_code=None, reason=None)
    status.update({"time": time.time(), **fields})
    status["state"] = status["state"] or "running"  # whoever writes about a run, runs it
    if status["state"] not in STATES:
        raise ValueError(f"state {status['state']!r} is not one of {', '.join(STATES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(status, indent=1) + "\n")
    return status


def timestamp(when: object) -> float | None:
    """Return seconds since 1970 of a `time` field: a number, or ISO 8601 text; None when it is neither."""
    if isinstance(when, str):
        with suppress(ValueError):
            return datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp()
    return float(when) if isinstance(when, (int, float)) else None


def main(argv: list[str] | None = None) -> int:
    """Print the state word of a run, or another field (an empty line when unset); return 0, or 2 without a run."""
    arguments = sys.argv[1:] if argv is None else argv
    run, field = (*arguments, "state")[:2] if arguments else ("-", "state")
    if len(arguments) > 2 or run.startswith("-") or field not in FIELDS:
        print(f"usage: python -m launch.status RUN [{'|'.join(FIELDS)}]", file=sys.stderr)
        return 2
    try:
        value = read_status(run).get(field)
        print("" if value is None else printable(str(value)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
