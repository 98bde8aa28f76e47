"""What a run writes while it trains."""

from __future__ import annotations

import json
from pathlib import Path

from launch.record import RunRecorder, SilentRecorder, keep_lines_up_to
from launch.status import read_status
from launch.trackers import Beside, Tracked
from trainer.state import RunState
from trainer.subspaces.partition import SubspacePartition
from trainer.subspaces.saliency import TaylorSaliency


def state(step: int) -> RunState:
    return RunState(SubspacePartition((6, 2)), TaylorSaliency(8), epoch=1, step=step)


def shown(run: Path, *trackers: str) -> Beside:
    return Beside(trackers, Tracked(run, "id", {}))


def step_line(step: int) -> dict:
    return {"epoch": 0, "step": step, "subspace": 1, "loss": 0.5, "lr": 0.1, "images_per_s": 9.0, "time": 1.0}


def test_lines_events_and_status_have_the_documented_fields(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, attempt=3, world_size=2, resume_step=0, trackers=shown(tmp_path))
    recorder.phase("epoch 0", 5)
    recorder.step(step_line(1))
    recorder.epoch({"epoch": 0, "step": 1, "time": 1.0, "train": {"loss": 0.5}})
    recorder.event("growth", state(1), widths=[6, 2], num_subspaces=2, decision_id="growth-0-x", parent=0)
    recorder.status("running", state(1))
    recorder.close()
    first, second = (json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert first == step_line(1)
    assert second["train"] == {"loss": 0.5}
    (event,) = (json.loads(text) for text in (tmp_path / "events.jsonl").read_text().splitlines())
    assert {"time", "event", "epoch", "step", "widths", "num_subspaces", "decision_id"} <= set(event)
    status = read_status(tmp_path)
    assert (status["state"], status["attempt"], status["world_size"], status["num_subspaces"]) == ("running", 3, 2, 2)


def test_a_resumed_run_drops_the_lines_it_will_write_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_lines_up_to(path, 3)  # nothing there yet is fine
    path.write_text("".join(json.dumps(step_line(step)) + "\n" for step in range(1, 6)) + '{"epoch": 0, "st')
    RunRecorder(tmp_path, attempt=2, world_size=1, resume_step=3, trackers=shown(tmp_path)).close()
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2, 3]


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, attempt=1, world_size=1, resume_step=0, trackers=shown(tmp_path, "tensorboard"))
    recorder.step(step_line(10))
    recorder.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(10, 0.5)]


def test_the_silent_recorder_writes_nothing(tmp_path: Path) -> None:
    recorder = SilentRecorder()
    recorder.step(step_line(1))
    recorder.event("growth", state(1))
    recorder.status("running", state(1))
    recorder.close()
    assert list(tmp_path.iterdir()) == []
