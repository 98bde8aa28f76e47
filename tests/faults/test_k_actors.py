"""Shards, coordinator and controller of a real Ray, killed and stopped: the bytes are those of the undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster import actors, ray_session, remote_shards
from cluster.actors import ControllerActor, ShardActor, StartedActors
from cluster.client import connect
from cluster.controller import ControllerCore
from cluster.errors import RunTaken, StaleMessage
from cluster.kmeans import KMeans, KMeansResult
from cluster.local import LocalCluster
from cluster.remote_shards import RemoteShards, ShardLost, Stored
from tests.actors import (
    ATTEMPTS,
    CONFIG,
    OPTIONS,
    TIMEOUT_S,
    VERSIONS,
    Ranks,
    assert_same,
    blocks,
    decisions,
    fit_with_saboteur,
    local_ray,
    undisturbed_result,
)
from tests.runs import ROOT, environment, wait_until

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]
NUM_SEEDS = 20


@pytest.fixture(scope="module")
def session() -> Iterator[ray_session.RaySession]:
    with local_ray(num_cpus=4) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(session: ray_session.RaySession, folder: Path) -> Iterator[StartedActors]:
    options = replace(OPTIONS, log_folder=str(folder / "logs"))
    started = actors.start("faults", str(folder / "journal.jsonl"), CONFIG, 2, options)
    yield started
    started.close()


@pytest.fixture(scope="module")
def expected() -> KMeansResult:
    return undisturbed_result()


# ---- shards


@pytest.mark.parametrize(
    ("method", "occurrence"),
    [("summary", 1), ("seed", 5), ("assign", 1), ("assign", 6), ("labels", 1), ("inertia", 1), ("reserves", 1)],
)
def test_k1_shard_killed_at_every_phase(
    record: Any, run: StartedActors, expected: KMeansResult, method: str, occurrence: int
) -> None:
    began = time.monotonic()
    assert_same(fit_with_saboteur(run, method, occurrence, signal.SIGKILL), expected)
    record("K1", f"SIGKILL of a shard before '{method}' {occurrence}", bitwise=True, restarts=1,
           recovered_s=time.monotonic() - began)  # fmt: skip


def test_k3_stopped_shard_is_killed_and_replaced(record: Any, run: StartedActors, expected: KMeansResult) -> None:
    options = replace(OPTIONS, call_timeout_s=10.0, restart_timeout_s=60.0)
    began = time.monotonic()
    assert_same(fit_with_saboteur(run, "assign", 3, signal.SIGSTOP, options), expected)
    record("K3", "SIGSTOP of a shard, answers due in 10 s", bitwise=True, restarts=1,
           recovered_s=time.monotonic() - began)  # fmt: skip


def test_k3_late_result_of_a_zombie_is_refused(
    record: Any, run: StartedActors, expected: KMeansResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard cannot be killed (as on a node that hangs): it is left out, and comes back when all is over."""
    monkeypatch.setattr(remote_shards, "end_hung", lambda actor, timeout_s: None)
    key = (next(ATTEMPTS), next(VERSIONS))
    stored = [Stored(ray.put(block), len(block[0]), "") for block in blocks(0, 1, 5)]
    shards = [run.actors["shard-0"], run.actors["shard-1"]]
    options = replace(OPTIONS, call_timeout_s=3.0)
    deadline = time.monotonic() + TIMEOUT_S
    group = RemoteShards(shards, key, stored, deadline, options, lambda key: None)
    zombie = run.pids()["shard-1"]
    os.kill(zombie, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ShardLost):
        KMeans(group, 12).fit(key[1], 12, 3, 256)
    detected_s = time.monotonic() - began
    later = (key[0] + 1, next(VERSIONS))
    alone = RemoteShards(shards[:1], later, stored, deadline, options, lambda key: None)
    assert_same(KMeans(alone, 12).fit(later[1], 12, 3, 256), expected)
    os.kill(zombie, signal.SIGCONT)
    together = RemoteShards(shards, later, stored, deadline, options, lambda key: None)
    assert ray.get(shards[1].ask.remote(key, "summary", key[1]), timeout=30) == (False, None)
    with pytest.raises(StaleMessage):
        ray.get(shards[1].load.remote(key, [], 5.0), timeout=30)
    assert_same(KMeans(together, 12).fit(later[1], 12, 3, 256), expected)
    assert run.pids()["shard-1"] == zombie
    record("K3", "stopped shard given up, continues later: late answers and loads", detected_s=detected_s, bitwise=True,
           stale_accepted=0)  # fmt: skip


@pytest.mark.parametrize("together", [False, True])
def test_k1_coordinator_killed(record: Any, run: StartedActors, expected: KMeansResult, together: bool) -> None:
    ranks, victim = Ranks(), run.pids()["kmeans"]
    ranks.begin(0)
    if together:
        ranks.begin(1)
    time.sleep(0.2)
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    if not together:
        ranks.begin(1)
    for result in ranks.finish():
        assert_same(result, expected)
    assert run.pids()["kmeans"] != victim
    phase = "at work" if together else "waiting for a rank"
    record("K1", f"SIGKILL of the coordinator {phase}", bitwise=True, restarts=1, recovered_s=time.monotonic() - began)


class SlowShard(ShardActor):
    """Answers after a random while."""

    def ask(self, key: Any, method: str, *arguments: Any) -> tuple[bool, Any]:
        time.sleep(random.random() * 0.01)
        return super().ask(key, method, *arguments)


def test_k4_any_number_of_actors_in_any_order(record: Any, session: ray_session.RaySession, expected: Any) -> None:
    slow = [ray.remote(SlowShard).options(num_cpus=0.1).remote(f"slow-{i}", OPTIONS) for i in range(4)]
    results = set()
    for seed in range(NUM_SEEDS):
        for count in range(1, 5):
            key = (next(ATTEMPTS), next(VERSIONS))
            pieces = list(blocks(0, 1, 3 + seed % 7))
            random.Random(seed).shuffle(pieces)
            stored = [Stored(ray.put(block), len(block[0]), "") for block in pieces]
            group = RemoteShards(slow[:count], key, stored, time.monotonic() + TIMEOUT_S, OPTIONS, lambda key: None)
            result = KMeans(group, 12).fit(key[1], 12, 3, 256)
            results.add((result.centroids.tobytes(), result.labels.tobytes(), result.reserves.tobytes()))
    for actor in slow:
        ray.kill(actor)
    assert results == {(expected.centroids.tobytes(), expected.labels.tobytes(), expected.reserves.tobytes())}
    record("K4", "1 to 4 actors, random delays", trials=4 * NUM_SEEDS, distinct_results=1, bitwise=True)
    record("B3", "any number and order of k-means actors", trials=4 * NUM_SEEDS, bitwise=True)


# ---- the controller


class FragileController(ControllerActor):
    """Dies once at each named moment of the report that makes a decision; the moments it has had are files."""

    def _get(self) -> ControllerCore:
        fresh, core = self._core is None, super()._get()
        if fresh and core._journal is not None:
            journal, write = core._journal, core._journal._write

            def fragile(line: bytes) -> None:
                decides = b'"decision_id"' in line
                if decides:
                    self._die_once("before", journal.path)
                write(line)
                if decides:
                    self._die_once("after", journal.path)

            journal._write = fragile  # type: ignore[method-assign]
        return core

    def _die_once(self, moment: str, journal: Path) -> None:
        mark = journal.with_name(f"died-{moment}")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_c1_actor_killed_around_a_decision(
    record: Any, session: ray_session.RaySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "ControllerActor", FragileController)
    undisturbed = LocalCluster(ControllerCore(CONFIG))
    expected = decisions(undisturbed, lambda epoch: None)
    started = actors.start("fragile", str(tmp_path / "journal.jsonl"), CONFIG, 1, OPTIONS)
    try:
        first = started.pids()["controller"]
        client = connect("fragile", 0, 1, 1, TIMEOUT_S)
        began = time.monotonic()
        assert decisions(client, lambda epoch: None) == expected
        seconds = time.monotonic() - began
        assert json.dumps(client.snapshot()) == json.dumps(undisturbed.snapshot())
        assert {path.name for path in tmp_path.glob("died-*")} == {"died-before", "died-after"}
        assert started.pids()["controller"] != first
    finally:
        started.close()
    decided = (tmp_path / "journal.jsonl").read_text().count('"decision_id"')
    assert decided == sum(decision is not None for decision in expected)
    record("C1", "SIGKILL of the actor before and after the record of a growth", restarts=2, recovered_s=seconds,
           bitwise=True, duplicated=0, lost=0)  # fmt: skip


def test_c2_stopped_controller_is_killed_and_replaced(record: Any, run: StartedActors, folder: Path) -> None:
    client = connect("faults", 0, 1, next(ATTEMPTS), TIMEOUT_S, patience_s=5.0)
    client.plan(0)
    victim = run.pids()["controller"]
    os.kill(victim, signal.SIGSTOP)
    began = time.monotonic()
    client.report(0, {"nmi": 0.5}, None)
    seconds = time.monotonic() - began
    assert not psutil.pid_exists(victim)
    assert run.pids()["controller"] != victim
    assert seconds < 60
    record("C2", "SIGSTOP of the actor, answers due in 5 s: killed, replaced", recovered_s=seconds, stale_writes=0)


# ---- duplicates and drivers


def test_g5_duplicate_actors_are_refused(record: Any, run: StartedActors, tmp_path: Path) -> None:
    before, began = run.pids(), time.monotonic()
    with pytest.raises(RunTaken, match="already has actors"):
        actors.start("faults", str(tmp_path / "journal.jsonl"), CONFIG, 2, OPTIONS)
    assert run.pids() == before
    assert not (tmp_path / "journal.jsonl").exists()
    record("G5", "actors of the same name", rc=RunTaken.exit_code, detected_s=time.monotonic() - began, duplicates=0)


DRIVER = """
import sys, time
from cluster import actors
from cluster.ray_session import ensure_ray
from tests.actors import CONFIG, OPTIONS
session = ensure_ray(sys.argv[1], node_ip="127.0.0.1")
started = actors.start("orphans", sys.argv[2], CONFIG, 1, OPTIONS)
print(*started.pids().values(), flush=True)
time.sleep(600)
"""


def test_k9_killed_driver_leaves_no_actors(record: Any, session: ray_session.RaySession, tmp_path: Path) -> None:
    """On somebody else's Ray: actors end with their driver, and another one may begin at once."""
    journal = str(tmp_path / "journal.jsonl")
    tokens = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", DRIVER, session.address, journal]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**environment(), **tokens})
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert len(pids) == 2 + OPTIONS.num_shards
    driver.kill()
    driver.wait()
    began = time.monotonic()
    started = actors.start("orphans", journal, CONFIG, 1, OPTIONS)
    ready_s = time.monotonic() - began
    try:
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the end of the orphans", 10)
        assert connect("orphans", 0, 1, 1, TIMEOUT_S).plan(0).epoch == 0
    finally:
        started.close()
    record("K9", "driver killed, another one started at once", recovered_s=ready_s, leaks=0)
