"""The shard actors of a run as the coordinator sees them: a group that survives the death of its members."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.calls import POLL_S, translated
from cluster.errors import ClusterTimeout
from cluster.hung import end_hung, place_of
from cluster.index import BackendName
from cluster.meeting import Key


@dataclass(frozen=True)
class ActorOptions:
    """Resources and patience. `num_cpus` and `num_gpus` are per shard, fractions allowed; `num_threads` limits the BLAS
    of a shard. `call_timeout_s`: one answer of a shard; `restart_timeout_s`: a killed shard to come back before the
    clustering goes on without it. Stacks of actors that hang go to `log_folder`."""

    num_shards: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    num_threads: int = 1
    backend: BackendName = "auto"
    num_iterations: int = 100
    start_timeout_s: float = 120.0
    call_timeout_s: float = 120.0
    restart_timeout_s: float = 60.0
    log_folder: str = ""


@dataclass(frozen=True)
class Stored:
    """A block in the object store; the reference is nested, so Ray does not fetch it for the coordinator."""

    ref: Any
    num_rows: int
    node: str


class ShardLost(Exception):
    """A shard did not come back in time; the clustering goes on without it."""

    def __init__(self, shard: int) -> None:
        super().__init__(shard)
        self.shard = shard


class RemoteShards:
    """A group of shard actors that survives their death: what a shard lost is put again and asked again."""

    def __init__(
        self,
        actors: Sequence[Any],
        key: Key,
        blocks: Sequence[Stored],
        deadline: float,
        options: ActorOptions,
        superseded: Callable[[Key], None],
    ) -> None:
        self._actors, self._key, self._deadline, self._options = list(actors), key, deadline, options
        self._superseded = superseded
        self._hung: set[int] = set()
        self._refs = share_blocks(blocks, [place_of(actor)[1] for actor in actors])
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
                raise ShardLost(i)
            time.sleep(POLL_S)
            call = self._load(i)

    def _get(self, i: int, call: Any, stage: str, default: Any = None) -> Any:
        """Return what a call gave, `default` when the actor died; a hung actor is killed once, then given up."""
        self.check(stage)
        left = max(self._deadline - time.monotonic(), 0.0)
        try:
            return ray.get(call, timeout=min(left, self._options.call_timeout_s))
        except GetTimeoutError:
            self.check(stage)
            if i in self._hung:
                raise ShardLost(i) from None
            self._hung.add(i)
            end_hung(self._actors[i], self._options.restart_timeout_s)
            return default
        except RayActorError:
            return default
        except RayTaskError as error:
            raise translated(error) from None


_DEAD = object()


def share_blocks(blocks: Sequence[Stored], nodes: Sequence[str]) -> list[list[Any]]:
    """Give every block to a shard on its own node if there is one, to the least loaded of those."""
    refs: list[list[Any]] = [[] for _ in nodes]
    load = [0] * len(nodes)
    for block in blocks:
        near = [i for i, node in enumerate(nodes) if node == block.node] or list(range(len(nodes)))
        target = min(near, key=lambda i: (load[i], i))
        refs[target].append(block.ref)
        load[target] += block.num_rows
    return refs
