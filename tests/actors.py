"""The actors of a run on real Ray: rows, two ranks as threads, ways to disturb, and what has to come out."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ray

from cluster import ray_session
from cluster.actors import StartedActors
from cluster.calls import PATIENCE_S
from cluster.client import connect
from cluster.controller import ControllerConfig, ControllerCore
from cluster.growth import PlateauGrowth
from cluster.kmeans import KMeans, KMeansResult
from cluster.local import LocalCluster
from cluster.plan import PlanConfig
from cluster.remote_shards import ActorOptions, RemoteShards, Stored

ROWS = np.random.default_rng(0).standard_normal((6000, 16)).astype(np.float32)
ROWS[100:200] = ROWS[:100]
CONFIG = ControllerConfig(PlanConfig(60), (32,), PlateauGrowth(patience=3, explore="patience"), seed=5)
OPTIONS = ActorOptions(num_shards=2, num_cpus=0.1, call_timeout_s=20.0, restart_timeout_s=40.0, num_iterations=12)
TIMEOUT_S = 90.0


@contextmanager
def environment(**changed: str) -> Iterator[None]:
    """Change variables of this process for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changed.items():
            patch.setenv(name, value)
        yield


@contextmanager
def local_ray(**options: Any) -> Iterator[ray_session.RaySession]:
    """A Ray of two cores on this machine, with a token of its own."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
    with environment(**token):
        given = {"num_cpus": 2, "num_gpus": 0, "object_store_bytes": 80 << 20, "node_ip": "127.0.0.1"}
        session = ray_session.ensure_ray(**{**given, **options})
        try:
            yield session
        finally:
            session.close()


def undisturbed_result() -> KMeansResult:
    """Return the result of the undisturbed run, in this process, on one shard."""
    core = ControllerCore(CONFIG)
    return LocalCluster(core, num_iterations=12).begin(0, 12, 3, [(np.arange(len(ROWS)), ROWS)])()


def blocks(rank: int, world_size: int, num: int = 6) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in np.array_split(np.arange(rank, len(ROWS), world_size), num):
        yield part, ROWS[part]


def assert_same(result: KMeansResult, expected: KMeansResult) -> None:
    for name, value in expected.to_arrays().items():
        other = getattr(result, name)
        same = value.tobytes() == other.tobytes() if isinstance(value, np.ndarray) else value == other
        assert same or name == "version", name


VERSIONS = iter(range(1000))
ATTEMPTS = iter(range(1, 1000))


class Ranks:
    """Two ranks as threads of this process."""

    def __init__(
        self, run_id: str = "faults", patience_s: float = PATIENCE_S, beside: ActorOptions | None = None
    ) -> None:
        attempt = next(ATTEMPTS)
        self.clients = [
            connect(run_id, rank, 2, attempt, TIMEOUT_S, patience_s=patience_s, beside=beside) for rank in (0, 1)
        ]
        self.version = next(VERSIONS)
        self.results: dict[int, KMeansResult | BaseException] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, rank: int) -> None:
        def work() -> None:
            try:
                self.results[rank] = self.clients[rank].begin(self.version, 12, 3, blocks(rank, 2))()
            except BaseException as error:
                self.results[rank] = error

        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def finish(self) -> list[Any]:
        """Return what every rank got."""
        for thread in self._threads:
            thread.join(TIMEOUT_S + 10)
        return [self.results[rank] for rank in sorted(self.results)]


class Saboteur:
    """Shards whose process is killed just before a given question, while it may still be working on the last one."""

    def __init__(self, group: RemoteShards, method: str, occurrence: int, pid: int, how: signal.Signals) -> None:
        self._group, self._method, self._left, self._pid, self._how = group, method, occurrence, pid, how

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        if method == self._method:
            self._left -= 1
            if self._left == 0:
                os.kill(self._pid, self._how)
        return self._group.ask(method, *arguments)


def fit_with_saboteur(
    run: StartedActors, method: str, occurrence: int, how: signal.Signals, options: ActorOptions = OPTIONS
) -> KMeansResult:
    """Cluster with two shards; the second is disturbed before the given question, and has to be another one then."""
    key = (next(ATTEMPTS), next(VERSIONS))
    stored = [Stored(ray.put(block), len(block[0]), "") for block in blocks(0, 1, 5)]
    shards = [run.actors["shard-0"], run.actors["shard-1"]]
    group = RemoteShards(shards, key, stored, time.monotonic() + TIMEOUT_S, options, lambda key: None)
    victim = run.pids()["shard-1"]
    saboteur = Saboteur(group, method, occurrence, victim, how)
    result = KMeans(saboteur, options.num_iterations).fit(key[1], 12, 3, 256)
    assert run.pids()["shard-1"] != victim
    return result


def decisions(client: Any, kill: Callable[[int], None], start: int = 0, stop: int = 12) -> list[str | None]:
    out = []
    for epoch in range(start, stop):
        client.plan(epoch)
        kill(epoch)
        scores = np.random.default_rng(epoch).standard_normal(32).tolist()
        growth = client.report(epoch, {"nmi": {"mean": 0.5}}, scores)
        out.append(None if growth is None else growth.decision_id)
    return out
