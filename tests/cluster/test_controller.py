"""The controller: exactly one decision per epoch, whatever is repeated, restarted or late."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.controller import ControllerConfig, ControllerCore, read_metric
from cluster.errors import StaleMessage
from cluster.growth import Growth, PlateauGrowth, Rollback
from cluster.journal import Journal
from cluster.plan import PlanConfig
from data_shards.errors import DataIntegrityError, UserError

CONFIG = ControllerConfig(
    PlanConfig(40, finetune_epoch=30), (32,), PlateauGrowth(patience=3, explore="patience"), seed=5
)


def metrics(value: float) -> dict[str, object]:
    return {"nmi": {"mean": value, "std": 0.1}, "recall": {"1": 0.5}}


def scores(epoch: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(epoch).standard_normal(32)]


def run(core: ControllerCore, attempt: int, start: int, stop: int) -> list[Growth | None]:
    decisions = []
    for epoch in range(start, stop):
        core.plan(epoch, attempt)
        decisions.append(core.report(epoch, attempt, metrics(0.5), scores(epoch)))
    return decisions


def fresh(journal: Journal | None = None) -> ControllerCore:
    core = ControllerCore(CONFIG, journal)
    core.begin(1)
    return core


def test_plateau_grows_and_reclusters_at_once() -> None:
    core = fresh()
    decisions = run(core, 1, 0, 4)
    assert decisions[:3] == [None, None, None]
    growth = decisions[3]
    assert growth is not None
    plan = core.plan(4, 1)
    assert (plan.version, plan.num_subspaces, plan.widths) == (1, 2, growth.widths)
    assert plan.recluster
    assert core.plan(3, 1).num_subspaces == 1  # asked again: the plan as it was


def test_a_repeated_report_returns_the_recorded_decision() -> None:
    core = fresh()
    growth = run(core, 1, 0, 4)[3]
    again = core.report(3, 1, metrics(0.9), [0.0] * 32)
    assert again == growth
    assert core.plan(4, 1).num_subspaces == 2


@pytest.mark.parametrize("stop", range(1, 14))
def test_rebuilt_from_its_journal_it_is_the_same(tmp_path: Path, stop: int) -> None:
    undisturbed = fresh()
    run(undisturbed, 1, 0, 14)
    journal = Journal(tmp_path / "journal.jsonl")
    run(fresh(journal), 1, 0, stop)
    journal.close()
    journal = Journal(tmp_path / "journal.jsonl")
    rebuilt = ControllerCore(CONFIG, journal)
    assert rebuilt.attempt == 1
    last = rebuilt.report(stop - 1, 1, metrics(0.5), scores(stop - 1))  # its answer was lost: asked again
    assert (last is None) == (undisturbed.snapshot()["records"][stop - 1]["growth"] is None)
    run(rebuilt, 1, stop, 14)
    assert json.dumps(rebuilt.snapshot()) == json.dumps(undisturbed.snapshot())
    journal.close()


def test_snapshot_restores_through_json_and_supersedes_what_came_after() -> None:
    undisturbed = fresh()
    run(undisturbed, 1, 0, 12)
    core = fresh()
    run(core, 1, 0, 5)
    kept = json.loads(json.dumps(core.snapshot()))
    run(core, 1, 5, 9)
    core.begin(2)
    core.restore(kept)
    assert core.snapshot() == kept
    run(core, 2, 5, 12)
    assert core.snapshot() == undisturbed.snapshot()


def test_a_new_attempt_that_starts_over_begins_a_new_timeline() -> None:
    core = fresh()
    run(core, 1, 0, 8)
    core.begin(2)
    assert core.plan(0, 2).num_subspaces == 1
    run(core, 2, 0, 8)
    expected = fresh()
    run(expected, 1, 0, 8)
    assert core.snapshot() == expected.snapshot()


def test_stale_attempts_and_versions_are_refused() -> None:
    core = fresh()
    run(core, 1, 0, 4)
    core.begin(2)
    core.begin(2)
    for message in (lambda: core.plan(4, 1), lambda: core.report(4, 1, {}, None), lambda: core.plan(4, 3)):
        with pytest.raises(StaleMessage, match="attempt"):
            message()
    with pytest.raises(StaleMessage, match="superseded by attempt 2"):
        core.begin(1)
    core.plan(4, 2)
    with pytest.raises(StaleMessage, match="partition 0, but the run is at 1"):
        core.report(4, 2, metrics(0.5), scores(4), version=0)
    assert core.report(4, 2, metrics(0.5), scores(4), version=1) is None


def test_epochs_cannot_be_skipped() -> None:
    core = fresh()
    run(core, 1, 0, 2)
    with pytest.raises(UserError, match="epoch 5, but the next epoch is 2"):
        core.plan(5, 1)


def test_no_growth_when_fine_tuning_begins_or_training_ends() -> None:
    core = fresh()
    decisions = run(core, 1, 0, 40)
    epochs = [g.epoch for g in decisions if g is not None]
    assert epochs
    assert max(epochs) < 29
    short = ControllerCore(ControllerConfig(PlanConfig(4), (32,), PlateauGrowth(patience=3)))
    short.begin(1)
    assert run(short, 1, 0, 4) == [None] * 4


def test_damaged_or_foreign_snapshots_are_refused() -> None:
    core = fresh()
    with pytest.raises(DataIntegrityError, match="snapshot in the checkpoint is damaged"):
        core.restore({"schema_version": 1})
    other = ControllerCore(ControllerConfig(PlanConfig(4), (16, 16)))
    with pytest.raises(DataIntegrityError, match="began with widths"):
        core.restore(other.snapshot())


@pytest.mark.parametrize(
    ("name", "expected"), [("nmi", 0.25), ("nmi.std", 0.1), ("recall.1", 0.5), ("recall", None), ("ami", None)]
)
def test_metric_by_its_name(name: str, expected: float | None) -> None:
    assert read_metric(metrics(0.25), name) == expected


def test_metric_that_is_not_finite_does_not_count() -> None:
    assert read_metric({"nmi": float("nan")}, "nmi") is None


TRIAL = ControllerConfig(PlanConfig(40), (32,), PlateauGrowth(patience=3, accept="validated"), seed=5)


def tried(core: ControllerCore, attempt: int, values: dict[int, float], start: int, stop: int) -> list[object]:
    found = []
    for epoch in range(start, stop):
        core.plan(epoch, attempt)
        found.append(core.report(epoch, attempt, metrics(values.get(epoch, 0.4)), scores(epoch)))
    return found


def test_a_rollback_is_one_more_version_of_the_partition(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    core = ControllerCore(TRIAL, journal)
    core.begin(1)
    changes = tried(core, 1, {0: 0.5}, 0, 8)
    assert [type(change).__name__ for change in changes if change] == ["Growth", "Rollback"]
    growth, rollback = changes[3], changes[6]
    assert isinstance(growth, Growth)
    assert isinstance(rollback, Rollback)
    assert (rollback.undoes, rollback.widths) == (growth.decision_id, (32,))
    plan = core.plan(8, 1)
    assert (plan.version, plan.widths, plan.recluster) == (2, (32,), False)
    journal.close()
    again = ControllerCore(TRIAL, Journal(tmp_path / "journal"))
    assert again.snapshot() == core.snapshot()
    assert again.report(6, 1, metrics(0.9), scores(0)) == rollback  # asked again: what was decided


def test_an_attempt_that_goes_on_before_a_rollback_decides_it_again() -> None:
    core = ControllerCore(TRIAL)
    core.begin(1)
    first = tried(core, 1, {0: 0.5}, 0, 7)
    core.begin(2)
    assert tried(core, 2, {0: 0.5}, 5, 7)[-1] == first[-1]


def test_no_split_goes_on_trial_that_could_not_end_it() -> None:
    config = ControllerConfig(PlanConfig(40, finetune_epoch=6), (32,), TRIAL.growth, seed=5)
    core = ControllerCore(config)
    core.begin(1)
    assert tried(core, 1, {0: 0.5}, 0, 8) == [None] * 8
