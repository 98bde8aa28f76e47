"""Which images train which subspace: features of every rank's rows -> clusters -> the assignment of an epoch.

Clusters of features that are had at the start of an epoch are used in that epoch, or, overlapped, from the next one on:
then k-means runs beside the training, and the assignment changes at the boundary of the epochs, however long it took.
The first clusters, and those of another number of subspaces, are always waited for, since nothing could be trained on
the ones before.

Legend: n rows of a block, F feature width, S training samples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.assignment import Assignment, RepairRule, from_clusters, overlap, parents
from cluster.index import MAX_MAGNITUDE
from cluster.kmeans import KMeansResult
from cluster.local import ClusterClient
from cluster.plan import EpochPlan
from data_shards.reader import SplitReader
from data_shards.samplers import blocks, shares
from trainer import distributed, evaluate
from trainer.engines.base import Engine
from trainer.nonfinite import NonFinite, diverged
from trainer.objectives.objective import Objective
from trainer.recorder import Recorder
from trainer.recycling import Recycled
from trainer.state import RunState


class Reclustering:
    """Clusters the training split with all other ranks and puts the result into the state.

    Args:
        features: "penultimate" (pooled, as published), "embedding", or "recycled" (pooled, of the training passes).
        recycled: keeps those of the training passes, where they are asked for.
        overlap: use clusters from the next epoch on.
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
        recycled: Recycled | None,
        overlap: bool,
        seed: int,
        rule: RepairRule,
        timeout_s: float,
    ) -> None:
        self.engine, self.objective, self.state, self.recorder = engine, objective, state, recorder
        self.train_split, self.embed_options, self.cluster = train, embed_options, cluster
        self.features, self.recycled, self.overlap = features, recycled, overlap
        self.seed, self.rule, self.timeout_s = seed, rule, timeout_s
        self._running: tuple[EpochPlan, Callable[[], KMeansResult], float] | None = None
        self._upcoming: tuple[Assignment, dict[str, Any]] | None = None  # and what is told of it

    def run(self, plan: EpochPlan) -> None:
        """Cluster anew at the start of an epoch, or begin to; all ranks together."""
        self.recorder.phase("clustering", len(self.train_split))
        before, began = self.state.assignment, time.monotonic()
        version = self.state.epoch  # one recluster per epoch at most, so its number is a version that never repeats
        with distributed.stage("clustering", at_most_s=self.timeout_s):
            work = self.cluster.begin(version, plan.num_subspaces, self.seed, self._blocks())
        share_bad_images(self.train_split)
        overlaps = self.overlap and before is not None and before.num_subspaces == plan.num_subspaces
        self._running = plan, _beside(work) if overlaps else work, time.monotonic() - began
        if not overlaps:
            self.adopt()

    def note(self, rows: Callable[[], np.ndarray]) -> None:
        """Keep the features of the step that was taken on this rank's rows (n,), where they are asked for."""
        if self.recycled is not None:
            self.recycled.note(self.state.epoch, rows(), self.engine.counts, self.engine.features)

    def adopt(self) -> None:
        """Use the clusters that were begun before, if there are any; all ranks together."""
        self.settle()
        if self._upcoming is None:
            return
        now, told = self._upcoming
        before, self._upcoming = self.state.assignment, None
        if before is None or now.num_subspaces > before.num_subspaces:
            self.objective.divide(parents(now, before))
        self.state.assignment = now
        self.recorder.event(
            "recluster",
            self.state,
            version=now.version,
            num_subspaces=now.num_subspaces,
            counts=now.counts.tolist(),
            nmi_to_previous=None if before is None else now.nmi_to(before),
            **told,
        )

    def forget(self) -> None:
        """Drop clusters and features of weights that are gone; all ranks together."""
        self.settle()
        self._upcoming = None
        if self.recycled is not None:
            self.recycled.forget()

    def settle(self) -> None:
        """Wait for the clusters that are under way."""
        if self._running is None:
            return
        plan, work, seconds = self._running
        self._running, began = None, time.monotonic()
        with distributed.stage("clustering", at_most_s=self.timeout_s):
            result = work()
        before, labels = self.state.assignment, self.train_split.labels
        total = None if before is None else _total_overlap(result, len(labels), before)
        now = from_clusters(result, len(labels), plan.num_subspaces, before, labels, self.rule, total=total)
        seconds += time.monotonic() - began  # that training did not go on
        self._upcoming = now, {"iterations": int(result.iterations), "seconds": round(seconds, 3)}

    def tensors(self) -> dict[str, Tensor]:
        """Return, for a checkpoint, the clusters that the next epoch will use and the features that were kept."""
        self.settle()
        named = {} if self.recycled is None else self.recycled.tensors()
        if self._upcoming is not None:
            now, told = self._upcoming
            named["upcoming/labels"] = torch.from_numpy(np.array(now.labels))
            named["upcoming/numbers"] = torch.tensor([now.version, now.num_subspaces, told["iterations"]])
        return named

    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self._upcoming = None
        if "upcoming/labels" in named:
            version, num_subspaces, iterations = named["upcoming/numbers"].tolist()
            now = Assignment(named["upcoming/labels"].numpy(), version, num_subspaces)
            self._upcoming = now, {"iterations": iterations, "seconds": 0.0}
        if self.recycled is not None:
            self.recycled.load_tensors(named)

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield this rank's (n,) rows and (n, F) features."""
        wanted = None
        if self.recycled is not None:
            epoch, size = self.state.epoch, self.embed_options.batch_size
            rows, features = self.recycled.take(epoch)
            for part in blocks(len(rows), size):
                yield rows[part], self._checked(rows[part], features[int(part[0]) : int(part[-1]) + 1].float())
            wanted = self.recycled.missing(epoch)
        with self.engine.averaged():
            model, options = self.engine.model, self.embed_options
            for rows, embedded in evaluate.embed_blocks(model, self.train_split, options, wanted):
                if self.features == "embedding":
                    features = self.state.partition.normalize(embedded.vectors.float())
                else:
                    features = embedded.features.float()
                yield rows, self._checked(rows, features)

    def _checked(self, rows: np.ndarray, features: Tensor) -> np.ndarray:
        if not (features.abs() < MAX_MAGNITUDE).all():  # nor is NaN
            raise NonFinite(diverged(f"the features of image {int(rows[0])} or later ones", self.state.step))
        found: np.ndarray = features.cpu().numpy()
        return found


def _total_overlap(result: KMeansResult, num_rows: int, before: Assignment) -> np.ndarray:
    """Return how many rows have each pair of labels; every rank counts its share of them."""
    own = shares(num_rows, distributed.rank(), distributed.world_size())
    counts = torch.from_numpy(overlap(result, num_rows, before, slice(own.start, own.stop)))
    with distributed.stage("counts of old and new clusters"):
        found: np.ndarray = distributed.gather_rows(counts[None].to(distributed.device())).sum(dim=0).cpu().numpy()
    return found


def _beside(work: Callable[[], KMeansResult]) -> Callable[[], KMeansResult]:
    """Begin the work in a thread; return what waits for its result. A rank that fails does not wait for the thread."""
    result: Future[KMeansResult] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # raised again where the result is asked for
            result.set_exception(error)

    threading.Thread(target=run, name="k-means", daemon=True).start()
    return result.result


def share_bad_images(split: SplitReader) -> None:
    """Have every rank know the images that any has replaced: together they may be too many."""
    if distributed.any_rank(bool(split.bad)):
        for rows in distributed.gather_arrays(np.array(sorted(split.bad), dtype=np.int64)):
            others = {int(row): "Another rank met a bad image." for row in rows if row not in split.bad}
            split.admit(others, tell=False)
