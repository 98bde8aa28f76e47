"""The plan of an epoch as a pure function."""

from __future__ import annotations

import json

import pytest

from cluster.plan import EpochPlan, PlanConfig, plan_epoch
from data_shards.errors import UserError


def reclustered(config: PlanConfig, widths: tuple[int, ...], grew_at: set[int] = frozenset()) -> list[int]:  # type: ignore[assignment]
    epochs = range(config.num_epochs)
    return [e for e in epochs if plan_epoch(config, e, widths, 0, grew_before=e - 1 in grew_at).recluster]


def test_one_subspace_never_clusters() -> None:
    assert reclustered(PlanConfig(10), (128,)) == []


def test_every_other_epoch_and_at_once_after_growth() -> None:
    assert reclustered(PlanConfig(8), (64, 64)) == [0, 2, 4, 6]
    assert reclustered(PlanConfig(8), (64, 64), {2}) == [0, 2, 3, 4, 6]
    assert reclustered(PlanConfig(8, after_growth="published"), (64, 64), {2}) == [0, 2, 4, 6]
    assert reclustered(PlanConfig(8, recluster_every=0), (64, 64), {4}) == [0, 5]


def test_fine_tuning_trains_the_full_embedding_without_clusters() -> None:
    config = PlanConfig(10, finetune_epoch=5)
    assert reclustered(config, (64, 64), {4}) == [0, 2, 4]
    assert [plan_epoch(config, e, (64, 64), 0, False).phase for e in (4, 5, 9)] == ["subspace", "full", "full"]


def test_json_round_trip() -> None:
    plan = plan_epoch(PlanConfig(10), 2, (32, 96), 1, True)
    assert plan == EpochPlan(2, 1, 2, (32, 96), "subspace", True)
    assert EpochPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UserError, match="num_epochs"):
        PlanConfig(0)


def test_the_full_embedding_is_trained_by_cluster_before_it_is_fine_tuned() -> None:
    config = PlanConfig(10, finetune_epoch=8, full_embedding_epoch=4)
    plans = [plan_epoch(config, e, (64, 64), 0, False) for e in range(10)]
    assert [plan.phase for plan in plans] == ["subspace"] * 4 + ["joint"] * 4 + ["full"] * 2
    assert [plan.epoch for plan in plans if plan.recluster] == [0, 2, 4, 6]


def test_clusters_double_while_the_embedding_stays_whole() -> None:
    config = PlanConfig(12, double_every=2, double_to=6, freeze_divided=True)
    plans = [plan_epoch(config, e, (64,), 0, False) for e in range(12)]
    assert [plan.num_subspaces for plan in plans] == [1, 1, 2, 2, 4, 4, 6, 6, 6, 6, 6, 6]
    assert {plan.widths for plan in plans} == {(64,)}
    assert [plan.epoch for plan in plans if plan.frozen] == [2, 4, 6]
    assert [plan.epoch for plan in plans if plan.recluster] == [2, 4, 6, 8, 10]


def test_clusters_that_have_just_doubled_are_found_at_once() -> None:
    assert reclustered(PlanConfig(8, recluster_every=4, double_every=3, double_to=4), (64,)) == [3, 4, 6]
