"""What a run writes while it trains: metrics.jsonl, events.jsonl, status.json, trackers, and a progress display.

JSON lines are the truth; the rest is a view. Only rank 0 gets a `RunRecorder`, the others a `SilentRecorder`.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.telemetry import gpu_readings
from data_shards.errors import printable
from data_shards.files import write_text
from launch.status import write_status
from launch.trackers import Tracker
from trainer.headline import headline, key
from trainer.state import RunState

LINE_EVERY_S = 30.0
log = logging.getLogger(__name__)


class PrintableLines(logging.Formatter):
    """Lines of a log in which foreign names (files, classes) act on no terminal and begin no line of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry; lines after its first are indented."""
        return "\n    ".join(map(printable, super().format(record).split("\n")))


class SilentRecorder:
    """The recorder of every rank but the first."""

    def step(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def epoch(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def event(self, event: str, state: RunState, **details: Any) -> None:
        """Nothing."""

    def status(self, status: str, state: RunState, **details: Any) -> None:
        """Nothing."""

    def phase(self, text: str, total: int | None = None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a torn last one: a resumed run writes those steps again."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            if json.loads(text)["step"] <= step:
                kept.append(text)
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(text + "\n" for text in kept))


def append_event(run: Path, event: str, **details: Any) -> None:
    """Append one event from outside the loop."""
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "event": event, **details}) + "\n")


class RunRecorder(SilentRecorder):
    """Writes to a run folder; `resume_step` is the step of the checkpoint that the run goes on from."""

    def __init__(self, run: Path, attempt: int, world_size: int, resume_step: int, trackers: Tracker) -> None:
        self.run, self.attempt, self.world_size = run, attempt, world_size
        keep_lines_up_to(run / "metrics.jsonl", resume_step)
        self.metrics = (run / "metrics.jsonl").open("a", buffering=1)
        self.events = (run / "events.jsonl").open("a", buffering=1)
        self.trackers = trackers
        self.display = _Display()
        self.busy_with: str | None = None

    def step(self, line: dict[str, Any]) -> None:
        """Write one line of a training step."""
        self.metrics.write(json.dumps(line) + "\n")
        self.display.advance(f"epoch {line['epoch']}  loss {line['loss']:.4f}  {line['images_per_s']:.0f} images/s")
        if line["step"] % 10 == 0:
            shown = {name: line[name] for name in ("loss", "lr", "images_per_s")} | line.get("terms", {})
            self.trackers.scalars({f"train/{name}": value for name, value in shown.items()}, line["step"])

    def epoch(self, line: dict[str, Any]) -> None:
        """Write one line of an epoch with its validation scores, and what the GPUs say, if there are any."""
        gpus = gpu_readings()
        line = {**line, "gpus": gpus} if gpus else line
        self.metrics.write(json.dumps(line) + "\n")
        scores = line.get("validation")
        text = f"epoch {line['epoch']:>3}  loss {line['train']['loss']:.4f}"
        told = headline(scores) if scores else {}
        text += "".join(f"  {'validation ' * (name == 'loss')}{name} {value:.3f}" for name, value in told.items())
        self.display.say(text)
        if told:
            self.trackers.scalars({f"validation/{key(name)}": value for name, value in told.items()}, line["step"])

    def event(self, event: str, state: RunState, **details: Any) -> None:
        """Append one event."""
        line = {"time": time.time(), "event": event, "epoch": state.epoch, "step": state.step, "attempt": self.attempt}
        self.events.write(json.dumps({**line, **details}) + "\n")
        if event == "growth":
            self.display.say(f"growth: {details['num_subspaces']} subspaces of widths {details['widths']}")
        elif event == "rollback":
            kept = f"{details['num_subspaces']} subspaces of epoch {details['to_epoch']}"
            self.display.say(f"rollback: the split did not pay; back to the {kept}")
        elif event == "recluster":
            self.display.say(f"recluster: {details['counts']} samples, {details['iterations']} iterations")
        elif event == "straggler":
            slow = "rank {rank} takes {seconds:.1f} s of an epoch for its {phase}, the others {typical_s:.1f} s"
            self.display.say(f"straggler: {slow.format(**details)}")

    def status(self, status: str, state: RunState, **details: Any) -> None:
        """Replace status.json."""
        self.trackers.state(status)
        write_status(
            self.run,
            state=status,
            phase=self.busy_with if status == "running" else None,
            epoch=state.epoch,
            step=state.step,
            num_subspaces=state.partition.num_subspaces,
            world_size=self.world_size,
            attempt=self.attempt,
            **{"exit_code": None, "reason": None, **details},
        )

    def phase(self, text: str, total: int | None = None) -> None:
        """Name what is going on, also for readers of status.json; `total` steps are expected."""
        self.busy_with = text
        self.display.phase(text, total)
        with suppress(OSError):  # a full disk ends no run that has nothing to lose by it
            write_status(self.run, phase=text)

    def close(self) -> None:
        """Flush and close everything."""
        self.display.close()
        self.metrics.close()
        self.events.close()
        self.trackers.close()


class _Display:
    """A bar on a terminal; elsewhere a log line every half minute, so that batch logs stay readable."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.last_line = time.monotonic()
        self.text, self.done, self.total = "", 0, None  # type: str, int, int | None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=None, note="")

    def phase(self, text: str, total: int | None) -> None:
        self.text, self.done, self.total = text, 0, total
        if self.bar is not None:
            self.bar.reset(self.task, description=text, total=total, note="")

    def advance(self, note: str) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, note=note)
        elif time.monotonic() - self.last_line > LINE_EVERY_S:
            self.last_line = time.monotonic()
            log.info("%s  step %d/%s  %s", self.text, self.done, self.total, note)

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            log.info("%s", text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
