"""Machines of the k-means actors taken away: raylets of one cluster killed, stopped, replaced or not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster import actors, ray_session
from cluster.actors import StartedActors
from cluster.kmeans import KMeansResult
from cluster.remote_shards import ActorOptions
from tests.actors import CONFIG, Ranks, assert_same, environment, undisturbed_result
from tests.ray_cluster import RayCluster
from tests.runs import wait_until

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]
NUM_SHARDS = 2
# One shard fills a node, so that a lost one needs a new node; half a minute is enough for a node to join.
OPTIONS = ActorOptions(
    num_shards=NUM_SHARDS, num_cpus=1.0, call_timeout_s=20.0, restart_timeout_s=60.0, num_iterations=12
)


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    """A head without cores and two nodes, joined by this process."""
    cluster = RayCluster(num_nodes=NUM_SHARDS, cpus_per_node=1)
    try:
        with environment(**cluster.variables):
            session = ray_session.ensure_ray(cluster.gcs_address)
            ray_session.wait_for_nodes(1 + NUM_SHARDS, 60)
            try:
                yield cluster
            finally:
                session.close()
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def expected() -> KMeansResult:
    return undisturbed_result()


def start(tmp_path: Path, restart_timeout_s: float) -> StartedActors:
    options = ActorOptions(**{**vars(OPTIONS), "restart_timeout_s": restart_timeout_s})
    return actors.start("nodes", str(tmp_path / "journal.jsonl"), CONFIG, 2, options)


def shard_on(raylet: int) -> psutil.Process:
    """Return the shard below a raylet."""
    [shard] = [child for child in psutil.Process(raylet).children() if "ShardActor" in child.cmdline()[0]]
    return shard


def clustered(run_id: str, expected: KMeansResult) -> float:
    """Cluster with two ranks, compare the bytes, return the seconds."""
    began, ranks = time.monotonic(), Ranks(run_id)
    ranks.begin(0)
    ranks.begin(1)
    results = ranks.finish()
    assert len(results) == 2
    for result in results:
        assert_same(result, expected)
    return time.monotonic() - began


def gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize("replaced", [True, False])
def test_k2_raylet_killed(
    record: Any, cluster: RayCluster, expected: KMeansResult, tmp_path: Path, replaced: bool
) -> None:
    started = start(tmp_path, restart_timeout_s=60.0 if replaced else 8.0)
    try:
        clustered("nodes", expected)
        shard = shard_on(cluster.raylets[1])
        os.kill(cluster.raylets[1], signal.SIGKILL)
        if replaced:
            cluster.add_node()
        seconds = clustered("nodes", expected)
        wait_until(lambda: gone(shard), "the end of the orphaned shard", 20)
        if replaced:
            assert shard_on(cluster.raylets[2]).is_running()
            assert len(started.pids()) == 2 + NUM_SHARDS
        again = clustered("nodes", expected)
    finally:
        started.close()
    what = "another joins" if replaced else "none joins: one shard is left"
    record("K2", f"SIGKILL of a raylet, {what}", recovered_s=seconds, next_clustering_s=again, bitwise=True, leaks=0)


def test_k3_raylet_and_its_shard_stopped_then_continued(
    record: Any, cluster: RayCluster, expected: KMeansResult, tmp_path: Path
) -> None:
    """The node hangs, is declared dead, and comes back as if nothing had happened."""
    started = start(tmp_path, restart_timeout_s=8.0)
    try:
        clustered("nodes", expected)
        raylet = psutil.Process(cluster.raylets[1])
        shard = shard_on(raylet.pid)
        for process in (raylet, shard):
            process.suspend()
        began = time.monotonic()
        seconds = clustered("nodes", expected)
        wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == NUM_SHARDS, "the death of the node", 60)
        detected_s = time.monotonic() - began
        assert shard.status() == psutil.STATUS_STOPPED
        for process in (shard, raylet):
            process.resume()
        clustered("nodes", expected)
        wait_until(lambda: gone(raylet) and gone(shard), "the end of the zombies", 60)
        clustered("nodes", expected)
    finally:
        started.close()
    record("K3", "SIGSTOP of a raylet and its shard, SIGCONT after the node was declared dead", detected_s=detected_s,
           recovered_s=seconds, bitwise=True, stale_accepted=0, leaks=0)  # fmt: skip
