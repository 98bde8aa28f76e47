"""status.json: what a run is doing, for people, schedulers and other programs.

torchrun, Ray and Slurm do not pass exit codes through (each turns 3, 75 and 143 into 1), so the outcome of a run is
this file. It is replaced whole (write, fsync, rename), so a reader never sees half of it. How an attempt ended is
decided by the ledger (launch/ledger.py), which outlives a status that could not be written.
`python -m launch.status RUN [FIELD]` prints the state word, or another field, alone, for batch scripts; it imports
nothing heavy, since a requeue hook may have seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.journal import read_events
from data_shards.errors import UserError, intact, printable
from data_shards.files import open_plain, write_text
from launch import history
from trainer.headline import headline

if TYPE_CHECKING:
    from rich.console import RenderableType

LEDGER = "ledger.jsonl"
STATES = ("running", "completed", "preempted", "failed")
FIELDS = ("state", "epoch", "step", "num_subspaces", "world_size", "attempt", "exit_code", "reason", "time")
_MAX_BYTES = 1 << 20
_TAIL_BYTES = 1 << 18  # enough for hundreds of steps and the last epoch line; a long run's file has gigabytes
_COLOURS = {"running": "cyan", "completed": "green", "preempted": "yellow", "failed": "red"}


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
        status.update(ended)
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

    Fields not named keep their value, except that `state="running"` clears `exit_code` and `reason` of the attempt
    before. `time` (seconds since the epoch) is set here. Only one process of a run, rank 0 or the launcher, writes.

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
    if fields.get("state") == "running":
        status.update(exit_code=None, reason=None)
    status.update({"time": time.time(), **fields})
    status["state"] = status["state"] or "running"  # whoever writes about a run, runs it
    if status["state"] not in STATES:
        raise ValueError(f"state {status['state']!r} is not one of {', '.join(STATES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(status, indent=1) + "\n")
    return status


def tail_records(path: Path, max_bytes: int = _TAIL_BYTES) -> list[dict[str, Any]]:
    """Return the JSON lines in the last `max_bytes` of a file, oldest first; [] when it does not exist.

    Lines cut by the window or by a crash are left out.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - max_bytes))
        lines = file.read().splitlines()
    return list(_parsed(lines))


def _parsed(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def render_status(run: Path | str) -> RenderableType:
    """Return a rich panel with the state, progress, subspaces, last scores and last events of a run.

    Raises:
        UserError: as `read_status`.
    """
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    status = read_status(run)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column()
    with intact(f"metrics.jsonl or events.jsonl in {run}"):
        for name, text in _lines(Path(run), status):
            table.add_row(name, escape(printable(text)))
    colour = _COLOURS[status["state"]]
    return Panel(
        table,
        title=f"{escape(printable(Path(run).resolve().name))}  [{colour}]{status['state']}[/{colour}]",
        title_align="left",
        border_style=colour,
        expand=False,
    )


def _lines(run: Path, status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) for what is known; a run that has just begun knows little."""
    metrics, events = tail_records(run / "metrics.jsonl"), tail_records(run / "events.jsonl")
    yield "epoch", f"{_shown(status.get('epoch'))}, step {_shown(status.get('step'))}"
    widths = next((e["widths"] for e in reversed(events) if e.get("widths")), None)
    subspaces = _shown(status.get("num_subspaces"))
    yield "subspaces", subspaces + (f"  widths {' '.join(str(w) for w in widths)}" if widths else "")
    yield "ranks", f"{_shown(status.get('world_size'))}, attempt {_shown(status.get('attempt'))}"
    step = next((m for m in reversed(metrics) if "loss" in m), None)
    if step is not None:
        speed = f", {step['images_per_s']:.0f} images/s" if step.get("images_per_s") else ""
        yield "loss", f"{step['loss']:.4f}{speed}"
    scores = next((m["validation"] for m in reversed(metrics) if m.get("validation")), None)
    if scores is not None:
        yield "validation", ", ".join(f"{name} {value:.3f}" for name, value in headline(scores).items())
    for event in events[-3:]:
        yield _age(event.get("time")), f"{event.get('event')} at epoch {_shown(event.get('epoch'))}"
    if status.get("time"):
        yield "written", _age(status["time"])
    if status.get("reason"):
        yield "reason", f"{status['reason']} (exit code {_shown(status.get('exit_code'))})"


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def timestamp(when: object) -> float | None:
    """Return seconds since 1970 of a `time` field: a number, or ISO 8601 text; None when it is neither."""
    if isinstance(when, str):
        with suppress(ValueError):
            return datetime.fromisoformat(when.replace("Z", "+00:00")).timestamp()
    return float(when) if isinstance(when, (int, float)) else None


def _age(when: object) -> str:
    moment = timestamp(when)
    if moment is None:
        return ""
    seconds = max(0.0, time.time() - moment)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


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
