"""When clusters come into use: at once, or from the next epoch on; and what becomes of them at a checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.assignment import Assignment, RepairRule
from cluster.kmeans import KMeansResult, kmeans
from cluster.plan import EpochPlan
from trainer import evaluate
from trainer.reclustering import Reclustering

pytestmark = pytest.mark.usefixtures("alone")
ROWS = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
LABELS = np.arange(24) % 4


class Cluster:
    """Clusters when it is told to go on."""

    def __init__(self) -> None:
        self.may_go_on, self.error = threading.Event(), None  # type: threading.Event, Exception | None

    def begin(self, version: int, num_clusters: int, seed: int, blocks: Any) -> Callable[[], KMeansResult]:
        list(blocks)

        def work() -> KMeansResult:
            assert self.may_go_on.wait(30)
            if self.error is not None:
                raise self.error
            found = kmeans(ROWS, num_clusters, seed)
            return KMeansResult.from_arrays({**found.to_arrays(), "version": version})

        return work


class Events:
    def __init__(self) -> None:
        self.versions: list[int] = []

    def phase(self, text: str, total: int) -> None:
        pass

    def event(self, event: str, state: Any, version: int, **details: Any) -> None:
        self.versions.append(version)


class Split:
    labels, bad = LABELS, dict[int, str]()

    def __len__(self) -> int:
        return len(LABELS)


def plan(epoch: int, num_subspaces: int) -> EpochPlan:
    return EpochPlan(epoch, 0, num_subspaces, (4,) * num_subspaces, "subspace", recluster=True)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Reclustering:
    """Return one that overlaps, in epoch 3, with an assignment to two subspaces."""
    monkeypatch.setattr(evaluate, "embed_blocks", lambda *_: iter(()))
    state = SimpleNamespace(epoch=3, step=0, assignment=Assignment(np.arange(24, dtype=np.int32) % 2, 1, 2))
    engine = SimpleNamespace(averaged=nullcontext, model=None)
    objective = SimpleNamespace(divide=lambda parents: None)
    parts: Any = (engine, objective, state, Split(), SimpleNamespace(batch_size=8), Cluster(), Events())
    return Reclustering(*parts, "penultimate", None, True, 0, RepairRule(2, 1), 60.0)


def test_overlapped_clusters_are_used_from_the_next_epoch_on(made: Any) -> None:
    before = made.state.assignment
    made.run(plan(3, 2))
    assert made.state.assignment is before
    made.cluster.may_go_on.set()
    made.settle()
    assert made.state.assignment is before
    made.adopt()
    assert made.state.assignment.version == 3
    assert made.recorder.versions == [3]
    made.adopt()
    assert made.recorder.versions == [3]


@pytest.mark.parametrize("what", ["the first", "another number", "not overlapped"])
def test_others_are_waited_for(made: Any, what: str) -> None:
    made.cluster.may_go_on.set()
    made.overlap = what != "not overlapped"
    made.state.assignment = None if what == "the first" else made.state.assignment
    made.run(plan(3, 3 if what == "another number" else 2))
    assert made.state.assignment.version == 3


def test_what_goes_wrong_beside_the_training_is_raised_where_the_clusters_are_wanted(made: Any) -> None:
    made.cluster.error = ValueError("no")
    made.cluster.may_go_on.set()
    made.run(plan(3, 2))
    with pytest.raises(ValueError, match="no"):
        made.adopt()


def test_clusters_of_weights_that_are_gone_are_dropped(made: Any) -> None:
    made.cluster.may_go_on.set()
    made.run(plan(3, 2))
    made.forget()
    made.adopt()
    assert made.state.assignment.version == 1


def test_a_checkpoint_holds_the_clusters_to_come(made: Any) -> None:
    made.cluster.may_go_on.set()
    made.run(plan(3, 2))
    tensors = made.tensors()
    made.adopt()
    expected = made.state.assignment
    made.state.assignment = Assignment(np.arange(24, dtype=np.int32) % 2, 1, 2)
    made.load_tensors(tensors)
    made.adopt()
    assert made.state.assignment == expected
    assert made.tensors() == {}
