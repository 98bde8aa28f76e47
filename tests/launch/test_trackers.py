"""Trackers: what they are told is what the real ones store, a run is one run there, and they cannot stop a training."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import UserError
from launch import trackers
from launch.config import checked
from launch.trackers import Beside, Tracked

SETTINGS = {"name": "mine", "train": {"epochs": 4}, "data": {"mean": [0.5], "shards": "x" * 600}}


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def tracked(folder: Path, resume_step: int = 0) -> Tracked:
    (folder / "run").mkdir(exist_ok=True)
    return Tracked(folder / "run", "0123abcd", SETTINGS, resume_step)


def two_attempts(name: str, folder: Path) -> None:
    """Record a run that is stopped after step 20 and gone on with from step 10."""
    first = Beside([name], tracked(folder))
    first.scalars({"train/loss": 0.5, "validation/map_at_r": 0.1}, 10)
    first.scalars({"train/loss": 0.4}, 20)
    first.state("preempted")
    first.close()
    second = Beside([name], tracked(folder, resume_step=10))
    second.scalars({"train/loss": 0.3}, 20)
    second.state("completed")
    second.close()


def test_tensorboard(tmp_path: Path) -> None:
    two_attempts("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / "run"))
    read.Reload()
    found = [(event.step, pytest.approx(event.value)) for event in read.Scalars("train/loss")]
    assert found == [(10, 0.5), (20, 0.3)]  # the step that was trained again is there once


def test_mlflow_has_one_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    two_attempts("mlflow", tmp_path)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("subspace")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert (run.data.params["train.epochs"], run.data.params["data.mean"]) == ("4", "[0.5]")
    assert run.data.metrics == {"train/loss": 0.3, "validation/map_at_r": 0.1}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(10, 0.5), (20, 0.4), (20, 0.3)]


def test_wandb_writes_one_run_to_be_sent_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    two_attempts("wandb", tmp_path)
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert folders and all(folder.name.endswith("-0123abcd") for folder in folders)
    stored = b"".join(file.read_bytes() for folder in folders for file in folder.glob("*.wandb"))
    assert b"train/loss" in stored and b"0.3" in stored and b"0.5" in stored and b"preempted" in stored


class Broken:
    """A tracker that fails at the first value."""

    def __init__(self, tracked: Tracked) -> None:
        self.asked = 0

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.asked += 1
        raise ConnectionError("no such host\x1b[31m")

    def state(self, word: str) -> None:
        self.asked += 1

    def close(self) -> None:
        self.asked += 1


class Hanging(Broken):
    """A tracker whose server never answers."""

    released = threading.Event()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.released.wait(60)


def beside(kind: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Beside:
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", (kind, "tensorboard", ""))
    return Beside(["tensorboard"], tracked(folder))


def test_one_that_fails_is_named_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = beside(Broken, tmp_path, monkeypatch)
    for step in range(3):
        made.scalars({"train/loss": 0.5}, step)
    made.state("completed")
    made.close()
    (thread,) = made.threads
    assert thread.tracker.asked == 1  # type: ignore[attr-defined]
    (said,) = (record.getMessage() for record in caplog.records)
    assert "tracker tensorboard failed" in said and "no such host\\x1b[31m" in said


def test_one_that_cannot_even_begin_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(tracked: Tracked) -> Broken:
        raise OSError("disk full")

    made = beside(cannot, tmp_path, monkeypatch)
    made.scalars({"train/loss": 0.5}, 1)
    made.close()
    assert made.threads == []


def test_one_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "MAX_WAITING", 4)
    monkeypatch.setattr(trackers, "CLOSE_S", 0.05)
    made = beside(Hanging, tmp_path, monkeypatch)
    for step in range(20):
        made.scalars({"train/loss": 0.5}, step)
    made.close()
    (thread,) = made.threads
    assert thread.is_alive() and thread.daemon
    Hanging.released.set()


def test_one_that_is_not_installed_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mlflow is not installed; pip install 'subspace-trainer\[mlflow\]'"):
        trackers.check(["mlflow"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({}, ("tensorboard",)),
        ({"trackers": []}, ()),
        ({"trackers": ["mlflow", "wandb"]}, ("mlflow", "wandb")),
        ({"tensorboard": False}, ()),
        ({"tensorboard": True}, ("tensorboard",)),
    ],
)
def test_what_a_configuration_says(written: dict[str, Any], meant: tuple[str, ...]) -> None:
    assert checked({"data": {"shards": "x"}, "launch": written}, "test").launch.trackers == meant


def test_both_words_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown key 'launch.tensorboard'"):
        checked({"data": {"shards": "x"}, "launch": {"tensorboard": True, "trackers": []}}, "test")
