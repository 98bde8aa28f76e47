"""What a run is doing, from files written by hand: estimates against sums done on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataIntegrityError, UserError
from launch import glance as it
from launch.ledger import Ledger
from launch.status import write_status

SCORES: dict[str, Any] = {"recall": {"1": 0.912}, "macro_recall_at_1": 0.9, "map_at_r": 0.25}
SCORES |= {"nmi": {"mean": 0.456}, "ami": {"mean": 0.4}}


def epoch_line(epoch: int, when: float, loss: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "step": 10 * (epoch + 1), "time": when, "train": {"loss": loss}, **more}


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make(run: Path, **status: Any) -> Path:
    """Write a run of 20 epochs of which three are over, each 100 s long, after two splits."""
    run.mkdir(exist_ok=True)
    settings = "name: eyes\ntrain: {epochs: 20}\nmodel: {num_dims: 32, num_subspaces: 1}\n"
    (run / "config.yaml").write_text(settings)
    steps = [{"epoch": 3, "step": 31 + i, "loss": 0.25, "images_per_s": 90.0 + i, "time": 1401.0 + i} for i in range(3)]
    gpus = [{"index": 0, "name": "H200", "utilization_percent": 93}]
    epochs = [epoch_line(e, 1100.0 + 100 * e, 1.0 - e / 10, validation=SCORES, gpus=gpus) for e in range(3)]
    lines(run / "metrics.jsonl", [*epochs, *steps])
    events = [{"event": "started", "time": 1000.0, "epoch": 0, "step": 0}]
    events += [{"event": "growth", "time": 1150.0, "epoch": 0, "num_subspaces": 2, "widths": [20, 12]}]
    events += [{"event": "recluster", "time": 1160.0, "epoch": 1, "counts": [7, 5], "nmi_to_previous": None}]
    events += [{"event": "checkpoint", "time": 1200.0, "epoch": 2, "step": 20}]
    events += [{"event": "growth", "time": 1250.0, "epoch": 1, "num_subspaces": 3, "widths": [20, 7, 5]}]
    lines(run / "events.jsonl", events)
    write_status(run, **{"state": "running", "epoch": 3, "step": 30, "num_subspaces": 3, **status})
    return run


def test_everything_that_the_files_say(tmp_path: Path) -> None:
    seen = it.glance(make(tmp_path, phase="training"), now=1440.0)
    assert (seen.name, seen.state, seen.phase) == ("eyes", "running", "training")
    assert (seen.epoch, seen.epochs, seen.step) == (3, 20, 33)
    assert (seen.num_subspaces, seen.widths) == (3, (20, 7, 5))
    assert seen.loss == 0.25
    assert seen.epoch_losses == (1.0, 0.9, 0.8)
    assert (seen.scores["NMI"], seen.scores["recall@1"], seen.scored_epoch) == (0.456, 0.912, 3)
    assert seen.images_per_s == 91.0
    assert seen.gpus[0]["name"] == "H200"
    assert seen.recluster is not None
    assert seen.recluster["counts"] == [7, 5]
    assert [event["widths"] for event in seen.changes] == [[20, 12], [20, 7, 5]]
    assert [event["event"] for event in seen.events] == ["started"]
    assert seen.left_s == pytest.approx(17 * 100 - 100)  # the fourth epoch has taken 140 s: what is left of it is 0
    assert seen.written is not None


def test_the_epoch_under_way_counts_for_what_is_left_of_it(tmp_path: Path) -> None:
    assert it.glance(make(tmp_path), now=1330.0).left_s == pytest.approx(1700 - 30)
    assert it.glance(make(tmp_path, state="preempted"), now=1330.0).left_s is None


def test_epochs_that_an_interruption_made_long_do_not_count() -> None:
    epochs = [epoch_line(0, 100.0), epoch_line(1, 110.0), epoch_line(2, 5000.0), epoch_line(3, 5012.0)]
    assert it.epoch_durations(epochs, [90.0, 4990.0]) == [10.0, 12.0]
    assert it.epoch_durations(epochs[:1], []) == []
    assert it.epoch_durations([epoch_line(0, 10.0), epoch_line(2, 20.0)], []) == []
    assert it.epoch_durations([epoch_line(0, 10.0), epoch_line(1, 5.0)], []) == []  # the clock was set
    assert it.time_left(epochs, [90.0, 4990.0], 4, 6, 5015.0) == pytest.approx(2 * 11.0 - 3.0)
    assert it.time_left(epochs, [90.0, 4990.0, 5100.0], 4, 6, 5101.0) == pytest.approx(2 * 11.0 - 1.0)  # begun anew


@pytest.mark.parametrize(("done", "total"), [(None, 6), (4, None), (6, 6)])
def test_nothing_is_said_of_the_time_left_when_it_is_not_known(done: int | None, total: int | None) -> None:
    epochs = [epoch_line(0, 100.0), epoch_line(1, 110.0)]
    assert it.time_left(epochs, [], done, total, 111.0) is None
    assert it.time_left(epochs[:1], [], 1, 6, 111.0) is None


def test_speed_is_a_median_of_the_last_steps() -> None:
    assert it.speed([]) is None
    assert it.speed([{"images_per_s": 1.0}] * 100 + [{"images_per_s": v} for v in (5.0,) * 26 + (900.0,) * 24]) == 5.0


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {epochs: 5}\nmodel: {num_dims: 7, num_subspaces: 3}\n")
    write_status(tmp_path, state="running", num_subspaces=3)
    seen = it.glance(tmp_path)
    assert (seen.name, seen.epoch, seen.epochs, seen.widths) == (tmp_path.name, None, 5, (3, 2, 2))
    assert (seen.loss, seen.scores, seen.left_s, seen.restarts, seen.machine) == (None, {}, None, 0, None)


def test_restarts_are_those_of_the_ledger(tmp_path: Path) -> None:
    make(tmp_path)
    ledger = Ledger(tmp_path)
    for _ in range(3):
        lease = ledger.begin("launch", 1, 0)
        lease.close()
    seen = it.glance(tmp_path)
    assert seen.restarts == 2
    assert seen.machine == ledger.events()[-1]["owner"]["machine"]


def test_damage_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        it.glance(tmp_path)
    make(tmp_path)
    lines(tmp_path / "metrics.jsonl", [{"epoch": 1, "train": {"loss": "much"}, "time": 3}])
    with pytest.raises(DataIntegrityError, match="damaged"):
        it.glance(tmp_path)
