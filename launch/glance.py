"""What a run is doing, as one value for terminals and pages: read from its files, which another process may be writing.

Files of any length cost the same: only their ends are read. What is not known yet is None or empty.

Legend: K subspaces.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from cluster.journal import read_events
from data_shards.errors import intact
from launch import history, yaml_file
from launch.json_lines import EPOCH_LINE, Record, tail_records
from launch.status import LEDGER, read_status, timestamp
from trainer.headline import headline

NUM_DURATIONS = 10  # epochs that the time left is estimated from
NUM_EVENTS = 3
_EPOCHS_BYTES = 1 << 23  # of metrics.jsonl, in which the last epochs are looked for: about 60,000 steps
_CHANGES = ("growth", "rollback")
_TOLD_ELSEWHERE = (*_CHANGES, "recluster", "checkpoint")


@dataclass(frozen=True)
class Glance:
    """A run at one moment; `epoch` counts completed ones, `epochs` is how many there will be."""

    name: str
    state: str
    phase: str | None
    epoch: int | None
    epochs: int | None
    step: int | None
    num_subspaces: int | None
    first_k: int | None  # K at the run's beginning
    widths: tuple[int, ...]
    world_size: int | None
    attempt: int | None
    restarts: int
    loss: float | None
    epoch_losses: tuple[float, ...]
    scores: dict[str, float]
    scored_epoch: int | None
    images_per_s: float | None
    gpus: tuple[Record, ...]
    machine: str | None  # where the newest attempt runs; see launch/ledger.py
    recluster: Record | None
    changes: tuple[Record, ...]  # growths and rollbacks, oldest first
    events: tuple[Record, ...]  # the last of all other kinds
    left_s: float | None
    written: float | None  # seconds since 1970 of the newest line
    reason: str | None
    exit_code: int | None


def glance(run: Path | str, now: float | None = None) -> Glance:
    """Look at a run folder.

    Raises:
        UserError: not a run folder, or a file cannot be read.
        DataIntegrityError: a file of the run is damaged.
    """
    run = Path(run)
    with intact(f"a file of the run in {run}"):
        return _glance(run, time.time() if now is None else now)


def _glance(run: Path, now: float) -> Glance:
    status, config = read_status(run), _config(run)
    lines, events = tail_records(run / "metrics.jsonl"), tail_records(run / "events.jsonl")
    epochs = tail_records(run / "metrics.jsonl", _EPOCHS_BYTES, EPOCH_LINE)
    steps = [line for line in lines if "loss" in line]
    scored = next((line for line in reversed(epochs) if line.get("validation")), None)
    changes = [event for event in events if event.get("event") in _CHANGES]
    made = history.attempts(history.checked(read_events(run / LEDGER), run / LEDGER))
    total, done = _number(config, "train", "epochs"), _completed(status, epochs)
    starts = [moment for event in events if event.get("event") in ("started", "restart") and (moment := _time(event))]
    running = status["state"] == "running"
    return Glance(
        name=str(config.get("name") or run.resolve().name),
        state=status["state"],
        phase=status.get("phase"),
        epoch=done,
        epochs=total,
        step=_most(status.get("step"), *(step.get("step") for step in steps[-1:])),
        num_subspaces=status.get("num_subspaces"),
        first_k=_number(config, "model", "num_subspaces"),
        widths=_widths(changes, config, status.get("num_subspaces")),
        world_size=status.get("world_size"),
        attempt=status.get("attempt"),
        restarts=max(len(made) - 1, 0),
        loss=float(steps[-1]["loss"]) if steps else None,
        epoch_losses=tuple(float(line["train"]["loss"]) for line in epochs[-40:]),
        scores=headline(scored["validation"]) if scored else {},
        scored_epoch=int(scored["epoch"]) + 1 if scored else None,
        images_per_s=speed(steps),
        gpus=tuple(epochs[-1].get("gpus") or ()) if epochs else (),
        machine=made[-1].owner["machine"] if made else None,
        recluster=next((event for event in reversed(events) if event.get("event") == "recluster"), None),
        changes=tuple(changes[-NUM_EVENTS:]),
        events=tuple([event for event in events if event.get("event") not in _TOLD_ELSEWHERE][-NUM_EVENTS:]),
        left_s=time_left(epochs, starts, done, total, now) if running else None,
        written=_most(*map(_time, (*lines[-1:], *events[-1:], status))),
        reason=status.get("reason"),
        exit_code=status.get("exit_code"),
    )


def _config(run: Path) -> Mapping[str, Any]:
    path = run / "config.yaml"
    return yaml_file.read(path) if path.exists() else {}


def _number(config: Mapping[str, Any], section: str, name: str) -> int | None:
    value = (config.get(section) or {}).get(name)
    return value if isinstance(value, int) else None


def _time(record: Mapping[str, Any]) -> float | None:
    return timestamp(record.get("time"))


def _completed(status: Mapping[str, Any], epochs: Sequence[Record]) -> int | None:
    """Return the completed epochs: a checkpoint, after which status.json is written, follows an epoch's line."""
    return _most(status.get("epoch"), *(int(line["epoch"]) + 1 for line in epochs[-1:]))


def _most(*values: Any) -> Any:
    return max((value for value in values if value is not None), default=None)


def _widths(changes: Sequence[Record], config: Mapping[str, Any], num_subspaces: int | None) -> tuple[int, ...]:
    """Return the widths of the subspaces: of the last change, else equal ones, as a run begins with."""
    told = next((event["widths"] for event in reversed(changes) if event.get("widths")), None)
    if told is not None:
        return tuple(int(width) for width in told)
    num_dims = _number(config, "model", "num_dims")
    if num_dims is None or not num_subspaces or num_subspaces != _number(config, "model", "num_subspaces"):
        return ()
    base, extra = divmod(num_dims, num_subspaces)
    return tuple(base + (k < extra) for k in range(num_subspaces))


def speed(steps: Sequence[Record]) -> float | None:
    """Return the median images per second of the last steps: the first step of an epoch and a save are slow."""
    told = [float(step["images_per_s"]) for step in steps[-50:] if step.get("images_per_s")]
    return median(told) if told else None


def epoch_durations(epochs: Sequence[Record], starts: Sequence[float]) -> list[float]:
    """Return the seconds that epochs took, oldest first: those that no start of an attempt has interrupted."""
    found = []
    for before, after in pairwise(epochs):
        begin, end = _time(before), _time(after)
        if begin is None or end is None or after["epoch"] != before["epoch"] + 1 or end < begin:
            continue
        if not any(begin < start < end for start in starts):
            found.append(end - begin)
    return found


def time_left(
    epochs: Sequence[Record], starts: Sequence[float], done: int | None, total: int | None, now: float
) -> float | None:
    """Return the seconds until the last epoch is over, from the mean of the last epochs; None when unknown.

    The epoch under way counts for what is left of it. Final scores and export come after.
    """
    durations = epoch_durations(epochs, starts)[-NUM_DURATIONS:]
    began = _most(*map(_time, epochs[-1:]), *starts)
    if not durations or done is None or total is None or began is None or done >= total:
        return None
    each = fmean(durations)
    return each * (total - done) - min(max(now - began, 0.0), each)
