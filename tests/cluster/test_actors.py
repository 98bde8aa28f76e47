"""Real Ray, real `kill -9`: whatever dies in the middle of the work, the result has the bytes of the undisturbed run.

Fault ids (K1, K3, ...) are those of the project's fault matrix. Every test that injects a fault also asserts that it
happened: the victim's process id has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from cluster import actors, ray_session
from cluster.actors import StartedActors
from cluster.client import connect
from cluster.controller import ControllerCore
from cluster.errors import ClusterTimeout, RunTaken, StaleMessage
from cluster.kmeans import KMeansResult
from cluster.local import LocalCluster
from cluster.processes import STACKS_SIGNAL
from cluster.remote_shards import ActorOptions
from data_shards.errors import UserError
from tests.actors import (
    ATTEMPTS,
    CONFIG,
    OPTIONS,
    ROWS,
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
from tests.runs import wait_until


@pytest.fixture(scope="module")
def session() -> Iterator[ray_session.RaySession]:
    with local_ray() as session:
        assert session.folder is not None
        folder = session.folder.path
        yield session
    session.close()
    assert not Path(folder).exists()


@pytest.fixture(scope="module")
def expected() -> KMeansResult:
    return undisturbed_result()


@pytest.fixture(scope="module")
def run(session: ray_session.RaySession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedActors]:
    folder = tmp_path_factory.mktemp("run")
    options = replace(OPTIONS, log_folder=str(folder / "logs"))
    started = actors.start("faults", str(folder / "journal.jsonl"), CONFIG, world_size=2, options=options)
    yield started
    pids = started.pids()
    started.close()
    started.close()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids.values()), "the end of the actors")


def test_undisturbed_ranks_get_the_bytes_of_one_process(run: StartedActors, expected: KMeansResult) -> None:
    ranks = Ranks()
    ranks.begin(0)
    ranks.begin(1)
    for result in ranks.finish():
        assert_same(result, expected)


@pytest.mark.parametrize("killed", [False, True])
def test_ranks_that_keep_their_rows_get_the_same_bytes(
    run: StartedActors, expected: KMeansResult, killed: bool
) -> None:
    """Sums go through the coordinator, which may be killed on the way."""
    ranks, victim = Ranks(beside=OPTIONS), run.pids()["kmeans"]
    ranks.begin(0)
    ranks.begin(1)
    if killed:
        time.sleep(0.1)
        os.kill(victim, signal.SIGKILL)
    for result in ranks.finish():
        assert_same(result, expected)
    assert (run.pids()["kmeans"] != victim) == killed


@pytest.mark.parametrize(
    ("method", "occurrence"), [("summary", 1), ("seed", 5), ("assign", 6), ("labels", 1), ("reserves", 1)]
)
def test_k1_shard_killed_in_every_phase(
    run: StartedActors, expected: KMeansResult, method: str, occurrence: int
) -> None:
    assert_same(fit_with_saboteur(run, method, occurrence, signal.SIGKILL), expected)


def test_k3_shard_that_hangs_is_killed_and_replaced(run: StartedActors, expected: KMeansResult) -> None:
    # Long enough for a replacement to start on a busy machine: a second silence counts as lost.
    options = ActorOptions(num_shards=2, call_timeout_s=10.0, restart_timeout_s=60.0, num_iterations=12)
    assert_same(fit_with_saboteur(run, "assign", 3, signal.SIGSTOP, options), expected)


def test_k1_shard_killed_under_the_coordinator(run: StartedActors, expected: KMeansResult) -> None:
    ranks, victim = Ranks(), run.pids()["shard-0"]
    ranks.begin(0)
    ranks.begin(1)
    time.sleep(0.1)
    os.kill(victim, signal.SIGKILL)
    for result in ranks.finish():
        assert_same(result, expected)
    assert run.pids()["shard-0"] != victim


@pytest.mark.parametrize("together", [False, True])
def test_coordinator_killed_while_ranks_wait_or_while_it_works(
    run: StartedActors, expected: KMeansResult, together: bool
) -> None:
    ranks, victim = Ranks(), run.pids()["kmeans"]
    ranks.begin(0)
    if together:
        ranks.begin(1)
    time.sleep(0.2)
    os.kill(victim, signal.SIGKILL)
    if not together:
        time.sleep(0.2)
        ranks.begin(1)
    for result in ranks.finish():
        assert_same(result, expected)
    assert run.pids()["kmeans"] != victim


def test_result_outlives_a_coordinator_that_dies_before_the_last_rank_has_it(
    run: StartedActors, expected: KMeansResult
) -> None:
    """One rank has its result and will not offer again; the other asks a new coordinator."""
    ranks, victim = Ranks(), run.pids()["kmeans"]
    ranks.begin(0)
    ranks.begin(1)
    ranks.finish()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(victim), "the end of the victim")
    # Rank 1 alone cannot fill the table of two, so only the kept result can answer it in time.
    again = ranks.clients[1]
    again._timeout_s = 30.0
    assert_same(again.begin(ranks.version, 12, 3, blocks(1, 2))(), expected)
    assert run.pids()["kmeans"] != victim


def test_c1_controller_killed_around_its_decisions(run: StartedActors) -> None:
    undisturbed = LocalCluster(ControllerCore(CONFIG))
    expected = decisions(undisturbed, lambda epoch: None)
    assert sum(d is not None for d in expected) >= 2
    client = connect("faults", 0, 2, next(ATTEMPTS), TIMEOUT_S)
    killed = []

    def kill(epoch: int) -> None:
        if epoch in (3, 7):  # the epochs of the decisions; epoch 4 follows one
            killed.append(run.pids()["controller"])
            os.kill(killed[-1], signal.SIGKILL)

    assert decisions(client, kill) == expected
    os.kill(run.pids()["controller"], signal.SIGKILL)
    assert client.report(11, {"nmi": 0.9}, [0.0] * 32) is None  # recorded: not decided again
    assert json.dumps(client.snapshot()) == json.dumps(undisturbed.snapshot())
    assert len({*killed, run.pids()["controller"]}) == 3


@pytest.mark.parametrize("name", ["controller", "kmeans"])
def test_c2_stopped_actor_is_killed_and_replaced_with_its_stacks_asked_for(
    run: StartedActors, expected: KMeansResult, name: str
) -> None:
    ranks, victim = Ranks(patience_s=5.0), run.pids()[name]
    os.kill(victim, signal.SIGSTOP)
    if name == "controller":
        assert decisions(ranks.clients[0], lambda epoch: None, 0, 2) == [None, None]
    else:
        ranks.begin(0)
        ranks.begin(1)
        for result in ranks.finish():
            assert_same(result, expected)
    wait_until(lambda: not psutil.pid_exists(victim), "the end of the victim")
    assert run.pids()[name] != victim


def test_actor_tells_where_it_is(run: StartedActors, tmp_path_factory: pytest.TempPathFactory) -> None:
    os.kill(run.pids()["shard-0"], STACKS_SIGNAL)
    stacks = tmp_path_factory.getbasetemp() / "run0" / "logs" / "stacks-shard-0.txt"
    wait_until(lambda: "most recent call first" in stacks.read_text(), "stacks")


def test_snapshot_restore_and_stale_attempts(run: StartedActors) -> None:
    old = connect("faults", 0, 2, next(ATTEMPTS), TIMEOUT_S)
    decisions(old, lambda epoch: None, 0, 2)
    kept = old.snapshot()
    new = connect("faults", 0, 2, next(ATTEMPTS), TIMEOUT_S)
    with pytest.raises(StaleMessage, match="attempt"):
        old.plan(2)
    new.restore(kept)
    assert new.snapshot() == kept
    assert new.plan(2).epoch == 2


def test_errors_cross_the_processes_as_one_sentence(run: StartedActors) -> None:
    client = connect("faults", 0, 1, next(ATTEMPTS), TIMEOUT_S)
    with pytest.raises(UserError, match="cannot make 5 clusters of 3 rows"):
        client.begin(next(VERSIONS), 5, 0, [(np.arange(3), ROWS[:3])])()
    with pytest.raises(UserError, match="row 6 are not finite"):
        client.begin(next(VERSIONS), 2, 0, [(np.arange(6, 9), np.where(np.eye(3), np.nan, 0.0))])()
    with pytest.raises(UserError, match="asked about epoch 99, but the next epoch is"):
        client.plan(99)


def test_timeouts_name_the_stage(run: StartedActors) -> None:
    lonely = connect("faults", 0, 2, next(ATTEMPTS), timeout_s=3.0)
    with pytest.raises(ClusterTimeout, match=r"embeddings of ranks \[1\]"):
        lonely.begin(next(VERSIONS), 5, 0, blocks(0, 2))()
    with pytest.raises(ClusterTimeout, match="controller's 'begin'"):
        connect("no-such-run", 0, 1, 1, timeout_s=0.5)


def test_k9_a_second_start_of_the_same_run_is_refused(run: StartedActors, tmp_path: Path) -> None:
    with pytest.raises(RunTaken, match="already has actors"):
        actors.start("faults", str(tmp_path / "journal.jsonl"), CONFIG, 2, OPTIONS)
    assert run.pids()


RANK_PROGRAM = """
import hashlib
import sys
import numpy as np
from cluster.client import connect
from cluster.ray_session import ensure_ray
address, rank, attempt, version = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
session = ensure_ray(address, node_ip="127.0.0.1")
rows = np.random.default_rng(0).standard_normal((6000, 16)).astype(np.float32)
rows[100:200] = rows[:100]
client = connect("faults", rank, 2, attempt, 60.0)
mine = np.arange(rank, 6000, 2)
result = client.begin(version, 12, 3, ((part, rows[part]) for part in np.array_split(mine, 9)))()
parts = (result.centroids, result.labels, result.reserves)
print("digest", hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
client.close()
session.close()
"""


def test_ranks_as_processes_of_their_own(
    run: StartedActors, session: ray_session.RaySession, expected: KMeansResult
) -> None:
    attempt, version = next(ATTEMPTS), next(VERSIONS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, session.address, str(rank), str(attempt), str(version)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    digests = []
    for rank in ranks:
        out, err = rank.communicate(timeout=TIMEOUT_S)
        assert rank.returncode == 0, err
        digests.append(next(line for line in out.splitlines() if line.startswith("digest")))
    parts = (expected.centroids, expected.labels, expected.reserves)
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    assert digests == [f"digest {digest}"] * 2


def test_shard_lost_for_good_is_left_out(
    session: ray_session.RaySession, tmp_path: Path, expected: KMeansResult
) -> None:
    options = ActorOptions(num_shards=2, num_cpus=0.1, restart_timeout_s=0.5, call_timeout_s=10.0, num_iterations=12)
    started = actors.start("degraded", str(tmp_path / "journal.jsonl"), CONFIG, 1, options)
    try:
        client = connect("degraded", 0, 1, 1, TIMEOUT_S)
        ray.kill(started.actors["shard-0"], no_restart=True)
        for version in (0, 1):
            assert_same(client.begin(version, 12, 3, blocks(0, 1))(), expected)
        ray.kill(started.actors["shard-1"], no_restart=True)
        with pytest.raises(ClusterTimeout, match="no shard actor is left"):
            client.begin(2, 12, 3, blocks(0, 1))()
    finally:
        started.close()
    assert not started.actors
