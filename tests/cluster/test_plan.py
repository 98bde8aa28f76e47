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
