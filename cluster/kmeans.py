"""Exact k-means over any number of shards: Lloyd 1982 with k-means++ seeding, one result for every sharding.

`KMeans` drives shards that hold the rows; per iteration K x F numbers go out and K x F exact partial sums come back, so
embeddings never move (as in DeepCluster-v2 and cuVS; faiss would gather them and add in float32, which is wrong above
2^24 rows per cluster). `kmeans` is the same thing inside this process.

Legend: S rows in all, F feature width, K clusters, R reserves per cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cluster.index import BackendName, Features, Labels
from cluster.shard import Candidate, Ids, KMeansShard, Partial, Scale, Summary
from data_shards import keyed
from data_shards.errors import UserError

__all__ = ["KMeans", "KMeansResult", "KMeansShard", "ShardGroup", "kmeans"]


class ShardGroup(Protocol):
    """Shards that all answer the same question: `ask("assign", ...)` returns the answers in shard order."""

    def ask(self, method: str, *arguments: Any) -> list[Any]: ...


class LocalShards:
    """Shards in this process, asked one after the other."""

    def __init__(self, shards: Sequence[KMeansShard]) -> None:
        self.shards = list(shards)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Return what each shard answers."""
        return [getattr(shard, method)(*arguments) for shard in self.shards]


@dataclass(frozen=True)
class KMeansResult:
    """A finished k-means; rows are in ascending order of their id.

    centroids (K, F) float32, row_ids (S,) int64, labels (S,) int32, counts (K,) int64. `inertia` is the sum of squared
    distances, `iterations` the assignments made before the last centroids, `num_empty_repaired` how often an empty
    cluster was given the farthest row, `converged` False when `num_iterations` ended it. reserves (K, R) int64 are
    rows of other clusters that would lose least by joining cluster k, -1 padded (R = 0 unless asked for).
    """

    version: int
    centroids: Features
    row_ids: Ids
    labels: Labels
    counts: npt.NDArray[np.int64]
    inertia: float
    iterations: int
    num_empty_repaired: int
    converged: bool
    reserves: Ids

    @property
    def num_clusters(self) -> int:
        """K, empty clusters included."""
        return len(self.centroids)

    @property
    def num_empty(self) -> int:
        """Clusters without a row: only when there are fewer distinct rows than clusters, or iterations ran out."""
        return int(np.count_nonzero(self.counts == 0))

    def to_arrays(self) -> dict[str, Any]:
        """Return numbers and arrays only, for crossing a process boundary."""
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> KMeansResult:
        """Rebuild what `to_arrays` gave."""
        return cls(**arrays)


class KMeans:
    """Lloyd's algorithm over a group of shards.

    `check` is called between iterations; it may raise (deadline, superseded attempt).
    """

    def __init__(
        self, shards: ShardGroup, num_iterations: int = 100, check: Callable[[str], None] | None = None
    ) -> None:
        if num_iterations < 1:
            raise UserError(f"k-means needs at least one iteration, got {num_iterations}.")
        self._shards, self._num_iterations = shards, num_iterations
        self._check = check or (lambda stage: None)

    def fit(
        self,
        version: int,
        num_clusters: int,
        seed: int,
        num_reserves: int = 0,
        initial: Features | None = None,
    ) -> KMeansResult:
        """Cluster the rows that the shards hold of `version`; the result does not depend on how they are spread.

        `initial` (K, F) replaces the seeding. Raises UserError when there are fewer rows than clusters.
        """
        total = self._totals(version, num_clusters)
        centroids = self._seed(version, num_clusters, seed, total.num_features) if initial is None else initial
        centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        if centroids.shape != (num_clusters, total.num_features):
            raise UserError(f"Initial centroids are {centroids.shape}, expected {(num_clusters, total.num_features)}.")
        scale = Scale.of(total.num_rows, total.max_abs)
        repaired, iterations, converged = 0, 0, False
        while not converged and iterations < self._num_iterations:
            self._check(f"k-means iteration {iterations}")
            iterations += 1
            arguments = (version, centroids, scale, total.max_norm)
            moved, num_repaired = self._update(arguments, scale)
            repaired += num_repaired
            converged = bool(np.array_equal(moved, centroids))
            centroids = moved
        return self._result((version, centroids, scale, total), iterations, repaired, converged, num_reserves)

    def _totals(self, version: int, num_clusters: int) -> Summary:
        if num_clusters < 1:
            raise UserError(f"k-means needs at least one cluster, got {num_clusters}.")
        held: list[Summary] = [s for s in self._shards.ask("summary", version) if s.num_rows]
        num_rows = sum(s.num_rows for s in held)
        if num_rows < num_clusters:
            raise UserError(
                f"k-means cannot make {num_clusters} clusters of {num_rows} rows; use at most {num_rows} clusters."
            )
        widths = {s.num_features for s in held}
        if len(widths) > 1:
            raise UserError(f"k-means got features of different widths: {sorted(widths)}.")
        return Summary(num_rows, widths.pop(), max(s.max_abs for s in held), max(s.max_norm for s in held))

    def _seed(self, version: int, num_clusters: int, seed: int, width: int) -> Features:
        chosen = np.empty((0, width), dtype=np.float32)
        for step in range(num_clusters):
            self._check(f"k-means seeding {step}")
            key = keyed.key(seed, "kmeans++", step)
            offers: list[Candidate] = [c for c in self._shards.ask("seed", version, key, chosen) if c is not None]
            winner = min(offers, key=lambda c: (c.value, c.row_id))
            chosen = np.concatenate((chosen, winner.vector[None]))
        return chosen

    def _update(self, arguments: tuple[Any, ...], scale: Scale) -> tuple[Features, int]:
        """One Lloyd iteration: new centroids, and how many empty clusters took the farthest rows."""
        centroids: Features = arguments[1]
        partials: list[Partial] = self._shards.ask("assign", *arguments)
        sums = np.sum([p.sums for p in partials], axis=0)
        counts = np.sum([p.counts for p in partials], axis=0)
        empty = np.flatnonzero(counts == 0)
        num_repaired = self._give_farthest(empty, sums, counts, arguments, scale) if empty.size else 0
        moved = centroids.copy()
        filled = counts > 0
        moved[filled] = scale.values(sums[filled]) / counts[filled, None]
        return moved, num_repaired

    def _give_farthest(self, empty: Ids, sums: Ids, counts: Ids, arguments: tuple[Any, ...], scale: Scale) -> int:
        """Move the farthest rows, ties by id, into the empty clusters; sums and counts are changed in place.

        The rule of scikit-learn, except that a row is left alone when it is the last of its cluster or lies on its
        centroid (all rows equal): then the cluster stays empty and keeps its centroid.
        """
        offers: list[list[Candidate]] = self._shards.ask("farthest", *arguments, len(empty) + len(counts))
        rows = sorted((c for offer in offers for c in offer), key=lambda c: (c.value, c.row_id))
        targets = iter(empty)
        num_repaired = 0
        for row in rows:
            if row.value >= 0.0 or num_repaired == len(empty):
                break
            if counts[row.label] < 2:
                continue
            target = next(targets)
            integers = scale.integers(row.vector).astype(np.int64)
            sums[row.label] -= integers
            counts[row.label] -= 1
            sums[target] += integers
            counts[target] += 1
            num_repaired += 1
        return num_repaired

    def _result(
        self, state: tuple[int, Features, Scale, Summary], iterations: int, repaired: int, converged: bool, num: int
    ) -> KMeansResult:
        version, centroids, scale, total = state
        arguments = (version, centroids, scale, total.max_norm)
        answers = self._shards.ask("labels", *arguments)
        row_ids = np.concatenate([ids for ids, _ in answers])
        order = np.argsort(row_ids, kind="stable")
        row_ids = row_ids[order]
        if np.any(row_ids[1:] == row_ids[:-1]):
            twice = int(row_ids[1:][row_ids[1:] == row_ids[:-1]][0])
            raise UserError(f"Row {twice} was put twice for version {version}; every row belongs to one rank.")
        labels = np.concatenate([labels for _, labels in answers])[order]
        # A squared distance is at most (2 max_norm)^2: 62 bits hold the sum of all of them.
        shift = 62 - math.ceil(math.log2(max(total.num_rows, 2))) - math.frexp(4.0 * total.max_norm**2)[1]
        inertia = math.ldexp(float(sum(self._shards.ask("inertia", *arguments, shift))), -shift)
        reserves = self._reserves(arguments, num, len(centroids))
        counts = np.bincount(labels, minlength=len(centroids)).astype(np.int64)
        return KMeansResult(
            version, centroids, row_ids, labels, counts, inertia, iterations, repaired, converged, reserves
        )

    def _reserves(self, arguments: tuple[Any, ...], num: int, num_clusters: int) -> Ids:
        out = np.full((num_clusters, num), -1, dtype=np.int64)
        if not num:
            return out
        answers = self._shards.ask("reserves", *arguments, num)
        for k in range(num_clusters):
            costs = np.concatenate([answer[k][0] for answer in answers])
            ids = np.concatenate([answer[k][1] for answer in answers])
            best = ids[np.lexsort((ids, costs))[:num]]
            out[k, : len(best)] = best
        return out


def kmeans(
    features: npt.NDArray[Any],
    num_clusters: int,
    seed: int,
    num_iterations: int = 100,
    num_shards: int = 1,
    backend: BackendName = "auto",
    initial: Features | None = None,
    num_threads: int = 1,
) -> KMeansResult:
    """Cluster (S, F) features in this process; row ids are 0..S-1. See `KMeans.fit` for what can be raised."""
    group = LocalShards([KMeansShard(backend, num_threads) for _ in range(num_shards)])
    ids = np.arange(len(features), dtype=np.int64)
    for shard, part, rows in zip(
        group.shards, np.array_split(ids, num_shards), np.array_split(features, num_shards), strict=True
    ):
        shard.put(0, part, rows)
    return KMeans(group, num_iterations).fit(0, num_clusters, seed, initial=initial)
