"""Which images train which subspace: features of every rank's rows -> clusters -> the assignment of an epoch.

Legend: n rows of a block, F feature width, S training samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from cluster.assignment import Assignment, RepairRule, from_clusters, parents
from cluster.index import MAX_MAGNITUDE
from cluster.local import ClusterClient
from cluster.plan import EpochPlan
from data_shards.reader import SplitReader
from trainer import distributed, evaluate
from trainer.engines.base import Engine
from trainer.nonfinite import NonFinite, diverged
from trainer.objectives.objective import Objective
from trainer.recorder import Recorder
from trainer.state import RunState


class Reclustering:
    """Clusters the training split with all other ranks and puts the result into the state.

    Args:
        features: "penultimate" (pooled, as published) or "embedding".
        seed: key of k-means.
        rule: what makes a cluster trainable.
        timeout_s: of the whole.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        state: RunState,
        train: SplitReader,
        embed_options: evaluate.EmbedOptions,
        cluster: ClusterClient,
        recorder: Recorder,
        features: str,
        seed: int,
        rule: RepairRule,
        timeout_s: float,
    ) -> None:
        self.engine, self.objective, self.state, self.recorder = engine, objective, state, recorder
        self.train_split, self.embed_options, self.cluster = train, embed_options, cluster
        self.features, self.seed, self.rule, self.timeout_s = features, seed, rule, timeout_s

    def run(self, plan: EpochPlan) -> None:
        """Cluster anew; all ranks together."""
        self.recorder.phase("clustering", len(self.train_split))
        before, began = self.state.assignment, time.monotonic()
        version = self.state.epoch  # one recluster per epoch at most, so its number is a version that never repeats
        with distributed.stage("clustering", at_most_s=self.timeout_s):
            result = self.cluster.recluster(version, plan.num_subspaces, self.seed, self._blocks())
        share_bad_images(self.train_split)
        labels = self.train_split.labels
        now = from_clusters(result, len(labels), plan.num_subspaces, before, labels, self.rule)
        if before is None or now.num_subspaces > before.num_subspaces:
            self.objective.divide(parents(now, before))
        self.state.assignment = now
        self._record(now, before, result, time.monotonic() - began)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield this rank's (n,) rows and (n, F) features."""
        with self.engine.averaged():
            for rows, embedded in evaluate.embed_blocks(self.engine.model, self.train_split, self.embed_options):
                if self.features == "embedding":
                    features = self.state.partition.normalize(embedded.vectors.float())
                else:
                    features = embedded.features.float()
                if not (features.abs() < MAX_MAGNITUDE).all():  # nor is NaN
                    raise NonFinite(diverged(f"the features of image {int(rows[0])} or later ones", self.state.step))
                yield rows, features.cpu().numpy()

    def _record(self, now: Assignment, before: Assignment | None, result: Any, seconds: float) -> None:
        self.recorder.event(
            "recluster",
            self.state,
            version=now.version,
            num_subspaces=now.num_subspaces,
            counts=now.counts.tolist(),
            nmi_to_previous=None if before is None else now.nmi_to(before),
            iterations=int(result.iterations),
            seconds=round(seconds, 3),
        )


def share_bad_images(split: SplitReader) -> None:
    """Have every rank know the images that any has replaced: together they may be too many."""
    if distributed.any_rank(bool(split.bad)):
        for rows in distributed.gather_arrays(np.array(sorted(split.bad), dtype=np.int64)):
            others = {int(row): "Another rank met a bad image." for row in rows if row not in split.bad}
            split.admit(others, tell=False)
