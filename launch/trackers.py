"""Where a run's curves are shown besides its own files: TensorBoard, MLflow, Weights & Biases, by `launch.trackers`.

All of them work without a network: MLflow writes files beside the run folder, W&B a folder to be sent later (`wandb
sync`), unless their own environment variables (MLFLOW_TRACKING_URI, WANDB_MODE) say otherwise. A run that is gone on
with is the same run there. No tracker can hold up or end a training: each has a thread of its own, what it raises is
said once, and then it is left out. The truth is in metrics.jsonl.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from data_shards.errors import UserError, printable

MAX_WAITING = 10_000
CLOSE_S = 20.0
# Offline, quiet, and not asking a dead server for minutes, unless the user says otherwise.
DEFAULTS = {
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_X_DISABLE_STATS": "true",  # a process more, for numbers that the run has
}
log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Somebody who shows curves. All of it may raise."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def state(self, word: str) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Tracked:
    """Which run it is: its folder, what it is called for ever, its settings, and the step that it goes on from."""

    run: Path
    run_id: str
    config: Mapping[str, Any]
    resume_step: int = 0

    @property
    def name(self) -> str:
        return self.run.resolve().name


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, tracked: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(tracked.run), purge_step=tracked.resume_step + 1)  # type: ignore[no-untyped-call]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def state(self, word: str) -> None:
        """Nothing: it has no such thing."""

    def close(self) -> None:
        self.writer.close()


class Mlflow:
    """A run of MLflow's experiment "subspace" (or MLFLOW_EXPERIMENT_NAME): files in `mlruns` beside the run folder."""

    STATES = {"running": "RUNNING", "completed": "FINISHED", "preempted": "SCHEDULED", "failed": "FAILED"}  # noqa: RUF012
    TAG = "subspace.run_id"

    def __init__(self, tracked: Tracked) -> None:
        entities, tracking = importlib.import_module("mlflow.entities"), importlib.import_module("mlflow.tracking")
        self.metric = entities.Metric
        files = (tracked.run.resolve().parent / "mlruns").as_uri()
        self.client = tracking.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or files)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "subspace")
        known = self.client.search_runs([experiment], f"tags.`{self.TAG}` = '{tracked.run_id}'", max_results=1)
        if known:
            self.run_id = known[0].info.run_id
        else:
            tags = {self.TAG: tracked.run_id, "mlflow.source.name": "subspace"}
            self.run_id = self.client.create_run(experiment, tags=tags, run_name=tracked.name).info.run_id
            self._parameters(tracked.config, entities.Param)
        self.state("running")

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self.client.create_experiment(name))

    def _parameters(self, config: Mapping[str, Any], parameter: Callable[[str, str], Any]) -> None:
        leaves = iter(flat(config))
        while batch := [parameter(name, str(value)[:500]) for name, value in islice(leaves, 100)]:
            self.client.log_batch(self.run_id, params=batch)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(
            self.run_id,
            metrics=[self.metric(name.replace("@", "_at_"), value, now, step) for name, value in values.items()],
        )

    def state(self, word: str) -> None:
        if word in ("completed", "failed"):
            self.client.set_terminated(self.run_id, self.STATES[word])
        else:
            self.client.update_run(self.run_id, status=self.STATES[word])

    def close(self) -> None:
        """Nothing: every call has written."""


class WeightsAndBiases:
    """A run of W&B's project "subspace" (or WANDB_PROJECT), in RUN/wandb until it is sent."""

    def __init__(self, tracked: Tracked) -> None:
        wandb = importlib.import_module("wandb")
        self.run: Any = wandb.init(
            id=tracked.run_id,
            name=tracked.name,
            project=os.environ.get("WANDB_PROJECT") or "subspace",
            dir=str(tracked.run),
            config=dict(tracked.config),
            resume="allow" if os.environ["WANDB_MODE"] == "online" else None,
        )
        # A step that is trained again after a restart lies below W&B's own counter, and would be dropped.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def state(self, word: str) -> None:
        self.run.summary["state"] = word

    def close(self) -> None:
        self.run.finish()


# name -> (class, the module that it needs, the extra that brings it)
TRACKERS: dict[str, tuple[Callable[[Tracked], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboard", ""),
    "mlflow": (Mlflow, "mlflow", "mlflow"),
    "wandb": (WeightsAndBiases, "wandb", "wandb"),
}


def check(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that is not installed."""
    for name in names:
        _, module, extra = TRACKERS[name]
        if find_spec(module) is None:
            raise UserError(f"launch.trackers: {name} is not installed; pip install 'subspace-trainer[{extra}]'")


class Beside:
    """Trackers, each in a thread of its own, that can raise or hang as they like."""

    def __init__(self, names: Sequence[str], tracked: Tracked) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        # Made here, not in the threads: an import lock that is held while a loader forks its workers stays held there.
        self.threads = [thread for name in names if (thread := _made(name, tracked)) is not None]

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._tell(lambda tracker: tracker.scalars(values, step))

    def state(self, word: str) -> None:
        self._tell(lambda tracker: tracker.state(word))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for thread in self.threads:
            thread.tell(what)

    def close(self) -> None:
        """Let the trackers finish, for a limited time."""
        self._tell(lambda tracker: tracker.close())
        for thread in self.threads:
            thread.tell(None)
        for thread in self.threads:
            thread.join(CLOSE_S)
            if thread.is_alive():
                log.warning("tracker %s does not end; left to itself", thread.name)


class _Thread(threading.Thread):
    def __init__(self, name: str, tracker: Tracker) -> None:
        super().__init__(name=name, daemon=True)
        self.tracker = tracker
        self.waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MAX_WAITING)

    def tell(self, what: Callable[[Tracker], None] | None) -> None:
        """Hand over what is to be done; nothing where the tracker has failed, or is far behind."""
        try:
            self.waiting.put_nowait(what)
        except queue.Full:
            return

    def run(self) -> None:
        while (what := self.waiting.get()) is not None:
            try:
                what(self.tracker)
            except Exception as error:
                _say(self.name, error)
                return


def _made(name: str, tracked: Tracked) -> _Thread | None:
    try:
        thread = _Thread(name, TRACKERS[name][0](tracked))
    except Exception as error:
        _say(name, error)
        return None
    thread.start()
    return thread


def _say(name: str, error: Exception) -> None:
    said = printable(f"{type(error).__name__}: {error}")[:300]
    log.warning("tracker %s failed and is left out from here on (%s); metrics.jsonl has everything", name, said)


def flat(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("train.epochs", 40) and so on of a tree of settings."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value
