"""The shared objects of a run as Ray actors: the only door to Ray in this package.

    controller          plans, decisions and the journal; restarted actors rebuild themselves from the journal
    kmeans              meets the ranks, drives the shards
    shard-0..shard-M-1  hold the embeddings, one block of the object store at a time, zero-copy

Ranks put their blocks into the object store while they embed, and offer the references. Whatever is killed is started
again by Ray and told again: shards by the coordinator (every question may be repeated, see `cluster.shard`), the
coordinator by the ranks, the controller by rank 0. A shard that does not come back is left out; since sums are exact,
the result has the same bytes in every case. All calls have a deadline, and what misses it is named.

Between processes go numbers, arrays and plain records only.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.controller import ControllerConfig, ControllerCore
from cluster.errors import ClusterTimeout, RunTaken, StaleMessage
from cluster.growth import Growth
from cluster.index import BackendName
from cluster.journal import Journal
from cluster.kmeans import KMeans, KMeansResult, KMeansShard
from cluster.local import NUM_RESERVES, Block
from cluster.meeting import Key, Meeting
from cluster.plan import EpochPlan
from data_shards.errors import UserError

Place = tuple[int, str]  # process id, node id

_PUT_BYTES = 16 << 20  # blocks of this size: few objects, and the first are on their way while the forward pass goes on
_POLL_S = 0.1


@dataclass(frozen=True)
class ActorOptions:
    """Resources and patience. `num_cpus` and `num_gpus` are per shard, fractions allowed; `num_threads` limits the BLAS
    of a shard. `call_timeout_s`: one answer of a shard; `restart_timeout_s`: a killed shard to come back before the
    clustering goes on without it."""

    num_shards: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    backend: BackendName = "auto"
    num_iterations: int = 100
    start_timeout_s: float = 120.0
    call_timeout_s: float = 120.0
    restart_timeout_s: float = 60.0


@dataclass(frozen=True)
class _Stored:
    """A block in the object store; the reference is nested, so Ray does not fetch it for the coordinator."""

    ref: Any
    num_rows: int
    node: str


class _PeerLost(ClusterTimeout):
    """The process that owned an object died."""


class _ShardLost(Exception):
    """A shard did not come back in time; the clustering goes on without it."""

    def __init__(self, shard: int) -> None:
        super().__init__(shard)
        self.shard = shard


# ---- actors --------------------------------------------------------------------------------------------------------


class ShardActor:
    """A `KMeansShard` in its own process."""

    def __init__(self, backend: BackendName, num_threads: int) -> None:
        from threadpoolctl import threadpool_limits

        self._shard = KMeansShard(backend, num_threads)
        self._limits = threadpool_limits(num_threads)  # numpy's BLAS would otherwise take every core of the node
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
        self._kept = key, {name: np.copy(v) if isinstance(v, np.ndarray) else v for name, v in result.items()}
        self._shard.drop()
        self._key = (key[0], key[1] - 1) if self._key == key else self._key

    def kept(self, key: Key) -> dict[str, Any] | None:
        """Return the remembered result of `key`."""
        return self._kept[1] if self._kept is not None and self._kept[0] == key else None


class CoordinatorActor:
    """Meets the ranks and drives the shards; its state is worth nothing, so it may die at any time."""

    def __init__(self, namespace: str, options: ActorOptions) -> None:
        self._options, self._meeting = options, Meeting()
        self._places: dict[Any, Place] = {}
        self._shards = [ray.get_actor(f"shard-{i}", namespace) for i in range(options.num_shards)]

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
        stored = [_Stored(*block) for block in blocks]
        if ray.get_runtime_context().was_current_actor_reconstructed:
            # An earlier coordinator may have finished this clustering and told some ranks, who will not offer again.
            known = [result for result in self._broadcast("kept", key) if result is not None]
            if known:
                return dict(known[0])

        def work(offers: dict[int, list[_Stored]]) -> dict[str, Any]:
            everything = [block for r in sorted(offers) for block in offers[r]]
            return self._work(key, terms, everything, time.monotonic() + timeout_s)

        result: dict[str, Any] = self._meeting.join(key, rank, world_size, terms, stored, timeout_s, work)
        return result

    def _work(self, key: Key, terms: dict[str, int], blocks: list[_Stored], deadline: float) -> dict[str, Any]:
        alive = list(self._shards)
        while alive:
            try:
                group = RemoteShards(alive, key, blocks, deadline, self._options, self._meeting.check, self._places)
                fit = KMeans(group, self._options.num_iterations, group.check)
                fitted = fit.fit(key[1], terms["num_clusters"], terms["seed"], terms["num_reserves"]).to_arrays()
                self._broadcast("keep", key, ray.put(fitted))
                return fitted
            except _ShardLost as lost:
                del alive[lost.shard]
        raise ClusterTimeout(f"Clustering {key[1]}: no shard actor is left, and none was started again in time.")

    def _broadcast(self, method: str, *arguments: Any) -> list[Any]:
        """Call every shard once; a shard that cannot answer now does not count."""
        calls = [getattr(shard, method).remote(*arguments) for shard in self._shards]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=self._options.call_timeout_s)
        answers = []
        for call in ready:
            try:
                answers.append(ray.get(call))
            except RayActorError:
                continue
        return answers


class ControllerActor:
    """A `ControllerCore` over a journal. It is built by the first call, so that its errors reach the caller."""

    def __init__(self, config: ControllerConfig, journal_path: str) -> None:
        self._config, self._journal_path = config, journal_path
        self._core: ControllerCore | None = None

    def where(self) -> tuple[int, str]:
        """Return (process id, node id) of a working controller."""
        self._get()
        return _process_id(), ray.get_runtime_context().get_node_id()

    def _get(self) -> ControllerCore:
        if self._core is None:
            self._core = ControllerCore(self._config, Journal(self._journal_path))
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


# ---- shards as the coordinator sees them ---------------------------------------------------------------------------


class RemoteShards:
    """A group of shard actors that survives their death: what a shard lost is put again and asked again."""

    def __init__(
        self,
        actors: Sequence[Any],
        key: Key,
        blocks: Sequence[_Stored],
        deadline: float,
        options: ActorOptions,
        superseded: Callable[[Key], None],
        places: dict[Any, Place],
    ) -> None:
        self._actors, self._key, self._deadline, self._options = list(actors), key, deadline, options
        self._superseded, self._places = superseded, places  # where each actor was last seen
        self._hung: set[int] = set()
        for i, call in enumerate([actor.where.remote() for actor in actors]):
            self._see(i, call)
        self._refs = share_blocks(blocks, [places.get(actor, (0, ""))[1] for actor in actors])
        loads = [self._load(i) for i in range(len(actors))]
        for i, call in enumerate(loads):
            self._settle(i, call)

    def check(self, stage: str) -> None:
        """Raise when the deadline has passed or a newer attempt has arrived."""
        self._superseded(self._key)
        if time.monotonic() > self._deadline:
            raise ClusterTimeout(f"Clustering {self._key[1]} did not finish in time; it was at {stage}.")

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Ask all shards at once; return their answers in order."""
        sent = [ray.put(a) if isinstance(a, np.ndarray) and a.nbytes > 100_000 else a for a in arguments]
        calls = [actor.ask.remote(self._key, method, *sent) for actor in self._actors]
        return [self._answer(i, call, method, sent) for i, call in enumerate(calls)]

    def _answer(self, i: int, call: Any, method: str, sent: list[Any]) -> Any:
        while True:
            loaded, answer = self._get(i, call, f"'{method}' of shard {i}") or (False, None)
            if loaded:
                return answer
            self._settle(i, self._load(i))
            call = self._actors[i].ask.remote(self._key, method, *sent)

    def _load(self, i: int) -> Any:
        return self._actors[i].load.remote(self._key, self._refs[i], self._options.call_timeout_s)

    def _settle(self, i: int, call: Any) -> None:
        """Wait until shard i holds its blocks, however often it has to be told."""
        patience = time.monotonic() + self._options.restart_timeout_s
        stage = f"loading of shard {i}"
        while self._get(i, call, stage, default=_DEAD) is _DEAD:
            self.check(stage)
            if time.monotonic() > patience:
                raise _ShardLost(i)
            time.sleep(_POLL_S)
            call = self._load(i)
            self._see(i, self._actors[i].where.remote())

    def _see(self, i: int, call: Any) -> None:
        place = self._get(i, call, f"shard {i}")
        if place is not None:
            self._places[self._actors[i]] = place

    def _get(self, i: int, call: Any, stage: str, default: Any = None) -> Any:
        """Return what a call gave, `default` when the actor died; a hung actor is killed once, then given up."""
        self.check(stage)
        left = max(self._deadline - time.monotonic(), 0.0)
        try:
            return ray.get(call, timeout=min(left, self._options.call_timeout_s))
        except GetTimeoutError:
            self.check(stage)
            if i in self._hung:
                raise _ShardLost(i) from None
            self._hung.add(i)
            self._kill(i)
            return default
        except RayActorError:
            return default
        except RayTaskError as error:
            raise _translated(error) from None

    def _kill(self, i: int) -> None:
        """Kill a shard that does not answer. `ray.kill` asks the process to end itself, which a stopped one cannot."""
        pid, node = self._places.get(self._actors[i], (0, ""))
        if not node:
            ray.kill(self._actors[i], no_restart=False)
            return
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(kill_shard_process).options(num_cpus=0, scheduling_strategy=there)
        try:
            ray.get(task.remote(pid), timeout=self._options.restart_timeout_s)
        except ray.exceptions.RayError:
            ray.kill(self._actors[i], no_restart=False)


def kill_shard_process(pid: int) -> None:
    """Kill -9 a process of this node, provided that it is a shard of ours."""
    try:
        if ShardActor.__name__ in "".join(psutil.Process(pid).cmdline()):
            os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return


_DEAD = object()


def share_blocks(blocks: Sequence[_Stored], nodes: Sequence[str]) -> list[list[Any]]:
    """Give every block to a shard on its own node if there is one, to the least loaded of those."""
    refs: list[list[Any]] = [[] for _ in nodes]
    load = [0] * len(nodes)
    for block in blocks:
        near = [i for i, node in enumerate(nodes) if node == block.node] or list(range(len(nodes)))
        target = min(near, key=lambda i: (load[i], i))
        refs[target].append(block.ref)
        load[target] += block.num_rows
    return refs


def _translated(error: RayTaskError) -> Exception:
    """Return our own error out of Ray's wrapping; a lost object means that the rank that owned it died."""
    cause = error.cause
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, ObjectLostError):
        return _PeerLost("A rank died before its embeddings were read; the run goes on from its last checkpoint.")
    if isinstance(cause, GetTimeoutError):
        return ClusterTimeout("The embeddings of a rank could not be fetched in time.")
    return error


# ---- start and stop ------------------------------------------------------------------------------------------------


def namespace_of(run_id: str) -> str:
    """Return the Ray namespace of a run."""
    return f"subspace-{run_id}"


@dataclass
class RaySession:
    """Ray as this process uses it; `close` ends only what `ensure_ray` began."""

    address: str
    owned: bool
    temp_dir: str | None = None

    def close(self) -> None:
        """Leave Ray, and end it if this process started it; closing twice is fine."""
        if self.owned:
            ray.shutdown()
            self.owned = False
        if self.temp_dir is not None:
            shutil.rmtree(self.temp_dir, ignore_errors=True)
            self.temp_dir = None


def ensure_ray(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_bytes: int | None = None,
) -> RaySession:
    """Join the Ray at `address`, or start one on this machine (None); a Ray that already runs here is used as it is.

    Authentication is the launcher's business: RAY_AUTH_MODE and the token are read by Ray from the environment. Raises
    UserError when the address does not answer or refuses the token.
    """
    if ray.is_initialized():
        return RaySession(ray.get_runtime_context().gcs_address, owned=False)
    _read_authentication()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"Ray at {address} cannot be joined ({reason}); check ray.address and the token.") from None
        return RaySession(ray.get_runtime_context().gcs_address, owned=True)
    folder = tempfile.mkdtemp(prefix="ray")  # short: socket paths below it are limited to 107 characters
    try:
        ray.init(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            _temp_dir=folder,
            **common,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return RaySession(ray.get_runtime_context().gcs_address, owned=True, temp_dir=folder)


def _read_authentication() -> None:
    """Make Ray read RAY_AUTH_MODE and the token again.

    It does so when it is imported; set later, they would reach the servers that it starts but not this process, and
    every call would be refused after 20 s (2.60). Ray itself refreshes in this way.
    """
    import ray._raylet as internals

    configuration, tokens = getattr(internals, "Config", None), getattr(internals, "AuthenticationTokenLoader", None)
    if configuration is not None and tokens is not None:
        configuration.initialize("")
        tokens.instance().reset_cache()


@dataclass
class StartedActors:
    """The actors of a run, held by the process that started them; they end with it at the latest."""

    run_id: str
    actors: dict[str, Any] = field(default_factory=dict)

    def pids(self, timeout_s: float = 60.0) -> dict[str, int]:
        """Return the process id of every actor by its name."""
        return {name: _call(_same(actor), "where", (), timeout_s, name)[0] for name, actor in self.actors.items()}

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
    options = options or ActorOptions()
    started = StartedActors(run_id)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    shared = {"namespace": namespace_of(run_id), "max_restarts": -1, "max_task_retries": 0}
    small = {**shared, "num_cpus": 0, "scheduling_strategy": here}  # beside the run folder, which holds the journal
    work = {**shared, "num_cpus": options.num_cpus, "num_gpus": options.num_gpus, "scheduling_strategy": "SPREAD"}
    # Every rank waits in a thread of its own, and once more while it repeats an offer.
    threads = 2 * world_size + 8
    try:
        controller = ray.remote(ControllerActor).options(name="controller", **small)
        started.actors["controller"] = controller.remote(config, journal_path)
        for i in range(options.num_shards):
            shard = ray.remote(ShardActor).options(name=f"shard-{i}", **work)
            started.actors[f"shard-{i}"] = shard.remote(options.backend, options.num_threads)
        coordinator = ray.remote(CoordinatorActor).options(name="kmeans", max_concurrency=threads, **small)
        started.actors["kmeans"] = coordinator.remote(namespace_of(run_id), options)
        started.pids(options.start_timeout_s)
    except ray.exceptions.ActorAlreadyExistsError:
        started.close()
        raise RunTaken(f"Run {run_id} already has actors on this Ray cluster; stop that run first.") from None
    except BaseException:
        started.close()
        raise
    return started


# ---- the client of a rank ------------------------------------------------------------------------------------------


class RayCluster:
    """The `ClusterClient` of one rank. Every call is repeated over the death of an actor until `timeout_s` is over."""

    def __init__(
        self, run_id: str, rank: int, world_size: int, attempt: int | None, timeout_s: float, num_reserves: int
    ) -> None:
        self._namespace, self._rank, self._world_size = namespace_of(run_id), rank, world_size
        self._timeout_s, self._num_reserves = timeout_s, num_reserves
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
    ) -> Growth | None:
        """Report an epoch; return the growth that follows it."""
        values = None if scores is None else [float(score) for score in scores]
        growth = self._controller("report", epoch, self.attempt, dict(metrics), values, version)
        return None if growth is None else Growth.from_json(growth)

    def snapshot(self) -> dict[str, Any]:
        """Return the controller's state for a checkpoint."""
        state: dict[str, Any] = self._controller("snapshot")
        return state

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Give the controller the state of a checkpoint."""
        self._controller("restore", dict(snapshot))

    def recluster(self, version: int, num_clusters: int, seed: int, blocks: Iterable[Block]) -> KMeansResult:
        """Put the blocks as they come, then cluster the rows of all ranks; see `ClusterClient`."""
        stored = [(ray.put((ids, rows)), len(ids), self._node) for ids, rows in joined(blocks, _PUT_BYTES)]
        terms = {"num_clusters": num_clusters, "seed": seed, "num_reserves": self._num_reserves}
        # The coordinator gives up a little earlier: it can say which rank or shard is missing.
        patience_s = 0.9 * self._timeout_s
        arguments = ((self.attempt, version), self._rank, self._world_size, terms, stored, patience_s)
        find = _finder("kmeans", self._namespace)
        return KMeansResult.from_arrays(_call(find, "cluster", arguments, self._timeout_s, f"clustering {version}"))

    def close(self) -> None:
        """Nothing of this rank is left in the actors."""

    def _controller(self, method: str, *arguments: Any) -> Any:
        find = _finder("controller", self._namespace)
        return _call(find, method, arguments, self._timeout_s, f"the controller's '{method}'")


def connect(
    run_id: str,
    rank: int,
    world_size: int,
    attempt: int | None = None,
    timeout_s: float = 600.0,
    num_reserves: int = NUM_RESERVES,
) -> RayCluster:
    """Return the client of a rank on an initialised Ray; rank 0 opens the attempt.

    `attempt` must be the same on all ranks and above every earlier one; None: rank 0 counts up, the others follow,
    which is only safe when they connect after rank 0. Raises ClusterTimeout when the actors do not answer in time.
    """
    return RayCluster(run_id, rank, world_size, attempt, timeout_s, num_reserves)


def joined(blocks: Iterable[Block], num_bytes: int) -> Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Join small blocks into larger ones of about `num_bytes`, in order.

    numpy only: putting a torch tensor costs 20 times as much.
    """
    ids: list[npt.NDArray[np.int64]] = []
    rows: list[npt.NDArray[np.float32]] = []
    size = 0
    for row_ids, features in blocks:
        ids.append(np.asarray(row_ids, dtype=np.int64))
        rows.append(np.asarray(features, dtype=np.float32))
        size += rows[-1].nbytes
        if size >= num_bytes:
            yield np.concatenate(ids), np.concatenate(rows)
            ids, rows, size = [], [], 0
    if size:
        yield np.concatenate(ids), np.concatenate(rows)


def _finder(name: str, namespace: str) -> Callable[[], Any]:
    return lambda: ray.get_actor(name, namespace)


def _same(actor: Any) -> Callable[[], Any]:
    return lambda: actor


def _call(find: Callable[[], Any], method: str, arguments: Sequence[Any], timeout_s: float, stage: str) -> Any:
    """Call an actor and return its answer, again and again while it is being restarted, until the time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ClusterTimeout(f"No answer from {stage} within {timeout_s:g} s.")
        try:
            return ray.get(getattr(find(), method).remote(*arguments), timeout=left)
        except GetTimeoutError:
            continue
        except RayTaskError as error:
            raise _translated(error) from None
        except (RayActorError, ValueError):  # dead, being restarted, or not there yet
            time.sleep(min(_POLL_S, left))
