"""One rank's client of the run's actors.

Ranks put their blocks into the object store while they embed, and offer the references; or keep them in a shard of
their own, and tell each other sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from cluster.calls import PATIENCE_S, call, finder, namespace_of, store_full
from cluster.errors import ClusterTimeout
from cluster.growth import Change, change_from_json
from cluster.kmeans import KMeansResult, KMeansShard
from cluster.local import NUM_RESERVES, Block, joined
from cluster.peers import fit
from cluster.plan import EpochPlan
from cluster.remote_shards import ActorOptions


class RayCluster:
    """The `ClusterClient` of one rank. Every call is repeated over the death of an actor until `timeout_s` is over."""

    def __init__(
        self,
        run_id: str,
        rank: int,
        world_size: int,
        attempt: int | None,
        timeout_s: float,
        num_reserves: int,
        patience_s: float,
        beside: ActorOptions | None = None,
    ) -> None:
        self._namespace, self._rank, self._world_size = namespace_of(run_id), rank, world_size
        self._timeout_s, self._num_reserves, self._patience_s = timeout_s, num_reserves, patience_s
        self._beside = beside
        self._shard = KMeansShard(beside.backend, beside.num_threads) if beside is not None else None
        self._node = ray.get_runtime_context().get_node_id()
        if attempt is None:
            attempt = int(self._controller("latest_attempt")) + (1 if rank == 0 else 0)
        self.attempt = attempt
        if rank == 0:
            self._controller("begin", attempt)

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        return EpochPlan.from_json(self._controller("plan", epoch, self.attempt))

    def report(
        self, epoch: int, metrics: Mapping[str, Any], scores: list[float] | None, version: int | None = None
    ) -> Change | None:
        """Report an epoch; return the change of the partition that follows it."""
        values = None if scores is None else [float(score) for score in scores]
        growth = self._controller("report", epoch, self.attempt, dict(metrics), values, version)
        return None if growth is None else change_from_json(growth)

    def snapshot(self) -> dict[str, Any]:
        """Return the controller's state for a checkpoint."""
        state: dict[str, Any] = self._controller("snapshot")
        return state

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Give the controller the state of a checkpoint."""
        self._controller("restore", dict(snapshot))

    def begin(self, version: int, num_clusters: int, seed: int, blocks: Iterable[Block]) -> Callable[[], KMeansResult]:
        """Put the blocks as they come, to have the rows of all ranks clustered; see `ClusterClient`."""
        if self._shard is not None:
            self._shard.reset(version)
            for ids, rows in joined(blocks):
                self._shard.put(version, ids, rows)
            return lambda: self._fit(version, num_clusters, seed)
        try:
            stored = [(ray.put((ids, rows)), len(ids), self._node) for ids, rows in joined(blocks)]
        except (ObjectStoreFullError, OutOfDiskError):
            raise store_full() from None
        terms = {"num_clusters": num_clusters, "seed": seed, "num_reserves": self._num_reserves}
        # The coordinator gives up a little earlier: it can say which rank or shard is missing.
        arguments = ((self.attempt, version), self._rank, self._world_size, terms, stored, 0.9 * self._timeout_s)
        return lambda: KMeansResult.from_arrays(self._call("kmeans", "cluster", arguments, f"clustering {version}"))

    def _fit(self, version: int, num_clusters: int, seed: int) -> KMeansResult:
        """Cluster with the other ranks; every rank counts, and hears the sums of all."""
        assert self._shard is not None and self._beside is not None
        key, deadline = (self.attempt, version), time.monotonic() + self._timeout_s
        terms = {"num_clusters": num_clusters, "seed": seed, "num_reserves": self._num_reserves}

        def ask(method: str, *arguments: Any) -> Any:
            return self._call("kmeans", method, (key, terms, *arguments), f"clustering {version}")

        def turn(step: int, answer: Any, last: Any) -> Any:
            return ask("turn", step, self._rank, self._world_size, answer, last, 0.9 * self._timeout_s)

        def check(stage: str) -> None:
            if time.monotonic() > deadline:
                raise ClusterTimeout(f"Clustering {version} did not finish in time; it was at {stage}.")

        return fit(
            *(self._shard, turn, partial(ask, "leave"), version, num_clusters, seed),
            *(self._num_reserves, self._beside.num_iterations, check),
        )

    def close(self) -> None:
        """Nothing of this rank is left in the actors."""

    def _controller(self, method: str, *arguments: Any) -> Any:
        return self._call("controller", method, arguments, f"the controller's '{method}'")

    def _call(self, name: str, method: str, arguments: tuple[Any, ...], stage: str) -> Any:
        return call(finder(name, self._namespace), method, arguments, self._timeout_s, stage, self._patience_s)


def connect(
    run_id: str,
    rank: int,
    world_size: int,
    attempt: int | None = None,
    timeout_s: float = 600.0,
    num_reserves: int = NUM_RESERVES,
    patience_s: float = PATIENCE_S,
    beside: ActorOptions | None = None,
) -> RayCluster:
    """Return the client of a rank on an initialised Ray; rank 0 opens the attempt.

    `attempt` must be the same on all ranks and above every earlier one; None: rank 0 counts up, the others follow,
    which is only safe when they connect after rank 0. An actor that is silent for twice `patience_s` is killed and
    started again. With `beside` every rank keeps its rows, in a shard of its own with these options; all ranks alike.
    Raises ClusterTimeout when the actors do not answer in time.
    """
    return RayCluster(run_id, rank, world_size, attempt, timeout_s, num_reserves, patience_s, beside)
