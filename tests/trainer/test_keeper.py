"""Keeps a run: the way back to the best checkpoint, and what a save that failed does to the run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.assignment import Assignment
from cluster.controller import ControllerCore
from cluster.growth import Growth, Rollback
from cluster.local import LocalCluster
from data_shards.errors import DataIntegrityError
from launch import build, engines, networks
from launch.config import load_config
from launch.objective import build_objective
from launch.record import SilentRecorder
from tests.runs import ROOT
from trainer.checkpoint import CheckpointStore, content_hash
from trainer.keeper import Keeper, NotSaved
from trainer.saving import Saver

pytestmark = pytest.mark.usefixtures("alone")


@dataclass
class Heard(SilentRecorder):
    """Remembers the names of events."""

    events: list[str] = field(default_factory=list)

    def event(self, event: str, state: Any, **details: Any) -> None:
        self.events.append(event)


def keeper(root: Path, stop_on_error: bool = False) -> Keeper:
    """Return the keeper of a fresh run of one rank, whose loss learns a proxy per class."""
    config = load_config(ROOT / "configs" / "smoke" / "growth.yaml", ["objective.loss={name: ProxyAnchorLoss}"])
    state = build.fresh_state(config)
    state.assignment = Assignment.single(20)
    engine = engines.engine(config, networks.model(config), world_size=1)
    client = LocalCluster(ControllerCore(build.controller_config(config)))
    saver = Saver(CheckpointStore(root), asynchronous=False)
    objective = build_objective(config, 10, torch.device("cpu"))
    return Keeper(engine, objective, state, client, saver, Heard(), 1, stop_on_error)


def train_on(kept: Keeper) -> None:
    """Change what training changes, and split the embedding."""
    state = kept.state
    growth = Growth("grow-0-0", 0, 0, tuple(reversed(range(32))), (16, 16), tuple(range(16, 32)), 7)
    kept.engine.permute_and_reset(list(growth.permutation), list(growth.reset_rows), growth.seed)
    kept.objective.grow(growth)
    state.partition = state.partition.grow((16, 16))
    state.assignment = Assignment.single(20, version=1)
    state.epoch, state.step = state.epoch + 1, state.step + 8


def saved_best(kept: Keeper) -> None:
    kept.state.best = {"epoch": kept.state.epoch, "score": 0.5}
    kept.save({}, best=True)


def test_rolling_back_brings_the_best_weights_and_keeps_the_position(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    saved_best(kept)
    before = {name: value.clone() for name, value in kept.engine.tensors().items()}
    train_on(kept)
    assert any(not torch.equal(before[name], value) for name, value in kept.engine.tensors().items())
    kept.save({})
    kept.roll_back(Rollback("rollback-1-0", "grow-0-0", 1, (32,)))
    assert all(torch.equal(before[name], value) for name, value in kept.engine.tensors().items())
    assert (kept.state.partition.widths, kept.state.partition.version) == ((32,), 2)
    assert kept.state.assignment is not None and kept.state.assignment.version == 0
    assert (kept.state.epoch, kept.state.step) == (1, 8)


@pytest.mark.parametrize("loss", ["gone", "another"])
def test_a_best_checkpoint_that_is_not_there_is_never_replaced_by_another(tmp_path: Path, loss: str) -> None:
    kept = keeper(tmp_path)
    saved_best(kept)
    train_on(kept)
    kept.save({})
    if loss == "gone":
        shutil.rmtree(kept.saver.store.best_path())
    else:
        kept.state.best = {"epoch": 1, "score": 0.7}  # scored best later, but that save failed
    held = content_hash(kept.state.to_checkpoint(kept.engine.tensors(), {}, 1))
    with pytest.raises(DataIntegrityError, match="best"):
        kept.roll_back(Rollback("rollback-1-0", "grow-0-0", 1, (32,)))
    assert content_hash(kept.state.to_checkpoint(kept.engine.tensors(), {}, 1)) == held


def in_the_way(root: Path) -> None:
    """A file where the folder of checkpoints should be: no save can succeed, whoever asks."""
    root.parent.mkdir(exist_ok=True)
    root.write_text("")


def test_a_run_goes_on_without_a_checkpoint_but_does_not_end_without_one(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "checkpoints")
    in_the_way(tmp_path / "checkpoints")
    kept.save({})
    assert isinstance(kept.recorder, Heard) and kept.recorder.events == ["not_saved"]
    with pytest.raises(NotSaved, match="cannot save the checkpoint of step 0"):
        kept.check_complete()
    (tmp_path / "checkpoints").unlink()
    kept.save({})
    assert kept.recorder.events == ["not_saved", "checkpoint"]
    kept.check_complete()


def test_a_run_that_asked_to_stop_stops_with_the_reason(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "checkpoints", stop_on_error=True)
    in_the_way(tmp_path / "checkpoints")
    with pytest.raises(NotSaved) as caught:
        kept.save({})
    assert caught.value.exit_code != 0


def test_values_that_are_not_finite_always_end_the_run(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    with torch.no_grad():
        next(iter(kept.engine.model.parameters()))[0] = torch.nan
    with pytest.raises(NotSaved) as caught:
        kept.save({})
    assert caught.value.exit_code == 4
