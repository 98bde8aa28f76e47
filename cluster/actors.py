"""The shared objects of a run as Ray actors.

    controller          plans, decisions and the journal; restarted actors rebuild themselves from the journal
    kmeans              meets the ranks, drives the shards
    shard-0..shard-M-1  hold the embeddings, one block of the object store at a time, zero-copy;
                        none where the ranks keep their rows (`cluster.peers`)

Whatever is killed is started again by Ray and told again: shards by the coordinator (every question may be repeated,
see `cluster.shard`), the coordinator by the ranks, the controller by rank 0. A shard that does not come back is left
out; since sums are exact, the result has the same bytes in every case. All calls have a deadline that names the stage.

Between processes go numbers, arrays and plain records only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorAlreadyExistsError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.calls import POLL_S, call, namespace_of, translated
from cluster.controller import ControllerConfig, ControllerCore
from cluster.errors import ClusterTimeout, RunTaken, StaleMessage
from cluster.exchange import Exchange
from cluster.hung import place_of
from cluster.journal import Journal
from cluster.kmeans import KMeans, KMeansShard
from cluster.meeting import Key, Meeting
from cluster.processes import die_with_parent, dump_stacks_on_signal
from cluster.remote_shards import ActorOptions, RemoteShards, ShardLost, Stored


class ShardActor:
    """A `KMeansShard` in its own process."""

    def __init__(self, name: str, options: ActorOptions) -> None:
        from threadpoolctl import threadpool_limits

        _settle_in(name, options)
        self._shard = KMeansShard(options.backend, options.num_threads)
        self._limits = threadpool_limits(
            options.num_threads
        )  # numpy's BLAS would otherwise take every core of the node
        self._key: Key = (-1, -1)
        self._kept: tuple[Key, dict[str, Any]] | None = None

    def where(self) -> tuple[int, str]:
        """Return (process id, node id)."""
        return _process_id(), ray.get_runtime_context().get_node_id()

    def load(self, key: Key, refs: list[Any], timeout_s: float) -> None:
        """Fetch blocks and hold them under `key`; refused when older than what is held."""
        if key < self._key:
            raise StaleMessage(f"Clustering {key} came to a shard that holds {self._key}.")
        self._shard.reset(key[1])
        for row_ids, features in ray.get(list(refs), timeout=timeout_s):
            self._shard.put(key[1], row_ids, features)
        self._key = key

    def ask(self, key: Key, method: str, *arguments: Any) -> tuple[bool, Any]:
        """Return (True, answer), or (False, None) when this process does not hold `key`."""
        if key != self._key:
            return False, None
        return True, getattr(self._shard, method)(*arguments)

    def keep(self, key: Key, result: dict[str, Any]) -> None:
        """Remember a result until the next one, for a coordinator that dies before every rank has it."""
        if self._kept is not None and key < self._kept[0]:
            raise StaleMessage(f"The result of clustering {key} came after that of {self._kept[0]}.")
        self._kept = key, {name: np.copy(v) if isinstance(v, np.ndarray) else v for name, v in result.items()}
        self._shard.drop()
        self._key = (key[0], key[1] - 1) if self._key == key else self._key

    def kept(self, key: Key) -> dict[str, Any] | None:
        """Return the remembered result of `key`."""
        return self._kept[1] if self._kept is not None and self._kept[0] == key else None


class CoordinatorActor:
    """Meets the ranks and drives the shards; its state is worth nothing, so it may die at any time."""

    def __init__(self, namespace: str, options: ActorOptions) -> None:
        _settle_in("kmeans", options)
        self._options, self._meeting, self._exchange = options, Meeting(), Exchange()
        self._shards = [ray.get_actor(f"shard-{i}", namespace) for i in range(options.num_shards)]
        self._lost: set[Any] = set()

    def where(self) -> tuple[int, str]:
        """Return (process id, node id)."""
        return _process_id(), ray.get_runtime_context().get_node_id()

    def cluster(
        self,
        key: Key,
        rank: int,
        world_size: int,
        terms: dict[str, int],
        blocks: list[tuple[Any, int, str]],
        timeout_s: float,
    ) -> dict[str, Any]:
        """Offer the blocks (reference, rows, node) of a rank and return the result of all ranks."""
        stored = [Stored(*block) for block in blocks]
        if ray.get_runtime_context().was_current_actor_reconstructed:
            # An earlier coordinator may have finished this clustering and told some ranks, who will not offer again.
            known = [result for result in self._broadcast("kept", key) if result is not None]
            if known:
                return dict(known[0])

        def work(offers: dict[int, list[Stored]]) -> dict[str, Any]:
            everything = [block for r in sorted(offers) for block in offers[r]]
            return self._work(key, terms, everything, time.monotonic() + timeout_s)

        result: dict[str, Any] = self._meeting.join(key, rank, world_size, terms, stored, timeout_s, work)
        return result

    def turn(self, *arguments: Any) -> tuple[bool, list[Any]]:
        """See `Exchange.turn`."""
        return self._exchange.turn(*arguments)

    def leave(self, *arguments: Any) -> None:
        """See `Exchange.leave`."""
        self._exchange.leave(*arguments)

    def _work(self, key: Key, terms: dict[str, int], blocks: list[Stored], deadline: float) -> dict[str, Any]:
        # A shard that was lost is waited for only when Ray has started it again since.
        alive = [shard for shard in self._shards if shard not in self._lost or place_of(shard)[1]]
        self._lost.difference_update(alive)
        while alive:
            try:
                group = RemoteShards(alive, key, blocks, deadline, self._options, self._meeting.check)
                fit = KMeans(group, self._options.num_iterations, group.check)
                fitted = fit.fit(key[1], terms["num_clusters"], terms["seed"], terms["num_reserves"]).to_arrays()
                self._broadcast("keep", key, ray.put(fitted))
                return fitted
            except ShardLost as lost:
                self._lost.add(alive.pop(lost.shard))
        raise ClusterTimeout(f"Clustering {key[1]}: no shard actor is left, and none was started again in time.")

    def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Call every shard once; a shard that cannot answer now does not count."""
        calls = [getattr(shard, method).remote(*arguments) for shard in self._shards]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=self._options.call_timeout_s)
        answers = []
        for answer in ready:
            try:
                answers.append(ray.get(answer, timeout=self._options.call_timeout_s))
            except RayActorError:
                continue
            except RayTaskError as error:
                raise translated(error) from None
        return answers


class ControllerActor:
    """A `ControllerCore` over a journal. It is built by the first call, so that its errors reach the caller."""

    def __init__(self, config: ControllerConfig, journal_path: str, options: ActorOptions) -> None:
        _settle_in("controller", options)
        self._config, self._journal_path = config, journal_path
        self._core: ControllerCore | None = None

    def where(self) -> tuple[int, str]:
        """Return (process id, node id) of a working controller."""
        self._get()
        return _process_id(), ray.get_runtime_context().get_node_id()

    def _get(self) -> ControllerCore:
        if self._core is None:
            self._core = ControllerCore(self._config, Journal(self._journal_path, hold=False))
        return self._core

    def latest_attempt(self) -> int:
        """Return the latest attempt that has begun, 0 before the first."""
        return self._get().attempt

    def begin(self, attempt: int) -> None:
        """See `ControllerCore.begin`."""
        self._get().begin(attempt)

    def plan(self, epoch: int, attempt: int) -> dict[str, Any]:
        """See `ControllerCore.plan`."""
        return self._get().plan(epoch, attempt).to_json()

    def report(
        self, epoch: int, attempt: int, metrics: dict[str, Any], scores: list[float] | None, version: int | None
    ) -> dict[str, Any] | None:
        """See `ControllerCore.report`."""
        growth = self._get().report(epoch, attempt, metrics, scores, version)
        return None if growth is None else growth.to_json()

    def snapshot(self) -> dict[str, Any]:
        """See `ControllerCore.snapshot`."""
        return self._get().snapshot()

    def restore(self, snapshot: dict[str, Any]) -> None:
        """See `ControllerCore.restore`."""
        self._get().restore(snapshot)


def _process_id() -> int:
    return os.getpid()


def _settle_in(name: str, options: ActorOptions) -> None:
    """Make this process end with its raylet, which it would outlive by minutes (Ray 2.60; the controller's holds the
    journal's lock), and tell on demand what it is doing."""
    die_with_parent()
    dump_stacks_on_signal(options.log_folder, name)


# -- start and stop

_PREDECESSOR_S = 10.0  # the actors of a driver that was just killed need a moment to end


@dataclass
class StartedActors:
    """The actors of a run, held by the process that started them; they end with it at the latest."""

    run_id: str
    actors: dict[str, Any] = field(default_factory=dict)

    def pids(self, timeout_s: float = 60.0) -> dict[str, int]:
        """Return the process id of every actor by its name."""
        names = list(self.actors)
        return {name: call(partial(self.actors.get, name), "where", (), timeout_s, name)[0] for name in names}

    def close(self) -> None:
        """Kill all actors for good and wait until Ray says that they are dead; closing twice is fine."""
        for actor in self.actors.values():
            ray.kill(actor, no_restart=True)
        for actor in self.actors.values():
            try:
                ray.get(actor.where.remote(), timeout=10.0)
            except (RayActorError, GetTimeoutError):
                continue
        self.actors = {}


def start(
    run_id: str,
    journal_path: str,
    config: ControllerConfig,
    world_size: int,
    options: ActorOptions | None = None,
) -> StartedActors:
    """Start the actors of a run on an initialised Ray and wait until all answer.

    Raises RunTaken when the run has actors already or its journal is held, ClusterTimeout when Ray cannot place them.
    """
    deadline = time.monotonic() + _PREDECESSOR_S
    while True:
        try:
            return _start(run_id, journal_path, config, world_size, options or ActorOptions())
        except ActorAlreadyExistsError:
            if time.monotonic() > deadline:
                raise RunTaken(f"Run {run_id} already has actors on this Ray cluster; stop that run first.") from None
            time.sleep(POLL_S)


def _start(
    run_id: str, journal_path: str, config: ControllerConfig, world_size: int, options: ActorOptions
) -> StartedActors:
    started = StartedActors(run_id)
    # Not soft: Ray 2.60 puts an actor that asks for no resource anywhere then, and this process is here anyway.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    shared = {"namespace": namespace_of(run_id), "max_restarts": -1, "max_task_retries": 0}
    small = {**shared, "num_cpus": 0, "scheduling_strategy": here}  # beside the run folder, which holds the journal
    work = {**shared, "num_cpus": options.num_cpus, "num_gpus": options.num_gpus, "scheduling_strategy": "SPREAD"}
    # Every rank waits in a thread of its own, and once more while it repeats an offer.
    threads = 2 * world_size + 8
    try:
        controller = ray.remote(ControllerActor).options(name="controller", **small)
        started.actors["controller"] = controller.remote(config, journal_path, options)
        for i in range(options.num_shards):
            shard = ray.remote(ShardActor).options(name=f"shard-{i}", **work)
            started.actors[f"shard-{i}"] = shard.remote(f"shard-{i}", options)
        coordinator = ray.remote(CoordinatorActor).options(name="kmeans", max_concurrency=threads, **small)
        started.actors["kmeans"] = coordinator.remote(namespace_of(run_id), options)
        started.pids(options.start_timeout_s)
    except BaseException:
        started.close()
        raise
    return started
