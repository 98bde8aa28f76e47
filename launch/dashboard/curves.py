"""The curves of a run, in a few hundred points each, however many steps it has.

Losses and speed are sampled: at a few hundred places of metrics.jsonl some neighbouring steps are averaged. Scores and
changes of K are rare lines; each look reads only what the files have got since the one before.

Legend: n points, each [completed epochs, step, hours since the first line, value]; K subspaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from data_shards.errors import intact
from launch.json_lines import EPOCH_LINE, GROWTH, ROLLBACK, Follower, Record, sampled_records
from launch.status import timestamp
from trainer.headline import headline

NUM_POINTS = 300
MAX_EPOCHS = 20_000  # of a run that are kept; of more every second one
_PLACE_BYTES = 4096  # about 30 steps
Points = list[list[float]]


class Curves:
    """Curves of one run folder, brought up to date by `read`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lines = Follower(run / "metrics.jsonl", EPOCH_LINE)
        self._events = Follower(run / "events.jsonl", GROWTH, ROLLBACK)
        self._epochs: list[Record] = []  # epoch, step, time, scores
        self._changes: dict[int, int] = {}  # step -> K from then on

    def read(self, first_k: int | None) -> dict[str, Any]:
        """Return {"loss", "images_per_s", "k": points, "scores": {name: points}}; `first_k` is K at the beginning.

        Raises:
            UserError: a file cannot be read, or is damaged.
        """
        with intact(f"a file of the run in {self.run}"):
            self._follow()
            steps = _sampled_steps(self.run / "metrics.jsonl")
            axis = Axis(self._epochs, steps)
            return {
                "loss": axis.points([(place["step"], place["loss"]) for place in steps]),
                "images_per_s": axis.points([(place["step"], place["speed"]) for place in steps]),
                "k": self._k_curve(first_k, axis),
                "scores": {name: axis.points(found) for name, found in self._scores().items()},
            }

    def _follow(self) -> None:
        afresh, lines = self._lines.look()
        self._epochs = [] if afresh else self._epochs
        for line in lines:
            scores = headline(line["validation"]) if line.get("validation") else {}
            place = {"epoch": int(line["epoch"]) + 1, "step": int(line["step"]), "time": timestamp(line.get("time"))}
            self._epochs.append({**place, "scores": scores})
            if len(self._epochs) > MAX_EPOCHS:
                self._epochs = self._epochs[::2]
        afresh, events = self._events.look()
        self._changes = {} if afresh else self._changes
        self._changes.update({int(event["step"]): int(event["num_subspaces"]) for event in events})

    def _scores(self) -> dict[str, list[tuple[int, float]]]:
        found: dict[str, list[tuple[int, float]]] = {}
        for line in self._epochs:
            for name, value in line["scores"].items():
                found.setdefault(name, []).append((line["step"], float(value)))
        return found

    def _k_curve(self, first_k: int | None, axis: Axis) -> Points:
        """Return K as a stair: two points at every change."""
        stair: list[tuple[int, float]] = [] if first_k is None else [(0, first_k)]
        for step, k in sorted(self._changes.items()):
            stair += [*((step, value) for _, value in stair[-1:]), (step, k)]
        return axis.points([*stair, *((axis.end, value) for _, value in stair[-1:])])


class Axis:
    """Where a step is: in epochs, by the lines of epochs; in hours, by the times of all lines that were seen."""

    def __init__(self, epochs: Sequence[Record], steps: Sequence[Record]) -> None:
        marks = {0: 0.0, **{line["step"]: float(line["epoch"]) for line in epochs}}
        self.end = max([*marks, *(place["step"] for place in steps)])
        if self.end not in marks and len(marks) > 1:  # the epoch under way is as long as the one before
            (before, _), (last, epoch) = sorted(marks.items())[-2:]
            marks[self.end] = epoch + min(1.0, (self.end - last) / (last - before))
        times = {line["step"]: line["time"] for line in (*epochs, *steps) if line["time"] is not None}
        self._marks, self._times = _columns(marks), _columns(times)

    def points(self, values: Sequence[tuple[int, float | None]]) -> Points:
        """Return at most about `NUM_POINTS` of (step, value) as points; what is not finite is left out."""
        known = np.array([pair for pair in values if pair[1] is not None], dtype=float).reshape(-1, 2)
        known = known[np.isfinite(known).all(axis=1)]
        if len(known) > NUM_POINTS:
            known = known[np.unique(np.linspace(0, len(known) - 1, NUM_POINTS).round().astype(int))]
        steps, heights = known.T
        epochs = np.interp(steps, *self._marks)
        hours = np.zeros(len(steps))
        if len(self._times[0]):
            hours = (np.interp(steps, *self._times) - self._times[1].min()).clip(0) / 3600
        columns = (epochs.round(4), steps, hours.round(5), heights)
        return [[float(f"{value:.6g}") for value in row] for row in np.stack(columns, axis=1)]


def _columns(pairs: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    ordered = np.array(sorted(pairs.items()), dtype=float).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def _sampled_steps(path: Path) -> list[Record]:
    """Return a point per place: step, time, mean loss, median speed. A small file, read in one piece, is cut up."""
    places = [
        [record for record in place if "loss" in record and "step" in record]
        for place in sampled_records(path, NUM_POINTS, _PLACE_BYTES)
    ]
    if len(places) == 1:
        size = max(1, -(-len(places[0]) // NUM_POINTS))
        places = [places[0][i : i + size] for i in range(0, len(places[0]), size)]
    return [_point(steps) for steps in places if steps]


def _point(steps: Sequence[Record]) -> Record:
    speeds = [float(step["images_per_s"]) for step in steps if step.get("images_per_s")]
    middle = steps[len(steps) // 2]
    return {
        "step": int(middle["step"]),
        "time": timestamp(middle.get("time")),
        "loss": fmean(float(step["loss"]) for step in steps),
        "speed": median(speeds) if speeds else None,
    }
