"""Real Ray, real `kill -9`: whatever dies in the middle of the work, the result has the bytes of the undisturbed run.

Fault ids (K1, K3, ...) are those of the project's fault matrix. Every test that injects a fault also asserts that it
happened: the victim's process id has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster import actors, ray_session
from cluster.actors import StartedActors
from cluster.calls import PATIENCE_S
from cluster.client import connect
from cluster.controller import ControllerConfig, ControllerCore
from cluster.errors import ClusterTimeout, RunTaken, StaleMessage
from cluster.growth import PlateauGrowth
from cluster.kmeans import KMeans, KMeansResult
from cluster.local import LocalCluster
from cluster.plan import PlanConfig
from cluster.processes import STACKS_SIGNAL
from cluster.remote_shards import ActorOptions, RemoteShards, Stored
from data_shards.errors import UserError

ROWS = np.random.default_rng(0).standard_normal((6000, 16)).astype(np.float32)
ROWS[100:200] = ROWS[:100]
CONFIG = ControllerConfig(PlanConfig(60), (32,), PlateauGrowth(patience=3, explore="patience"), seed=5)
OPTIONS = ActorOptions(num_shards=2, num_cpus=0.1, call_timeout_s=20.0, restart_timeout_s=40.0, num_iterations=12)
TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def session() -> Iterator[ray_session.RaySession]:
    changed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    session = ray_session.ensure_ray(num_cpus=2, num_gpus=0, object_store_bytes=80 << 20)
    assert session.folder is not None
    folder = session.folder.path
    yield session
    session.close()
    session.close()
    assert not Path(folder).exists()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def run(session: ray_session.RaySession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedActors]:
    folder = tmp_path_factory.mktemp("run")
    options = replace(OPTIONS, log_folder=str(folder / "logs"))
    started = actors.start("faults", str(folder / "journal.jsonl"), CONFIG, world_size=2, options=options)
    yield started
    pids = started.pids()
    started.close()
    started.close()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids.values()))


@pytest.fixture(scope="module")
def expected() -> KMeansResult:
    """The undisturbed run, in this process, on one shard."""
    core = ControllerCore(CONFIG)
    return LocalCluster(core, num_iterations=12).recluster(0, 12, 3, [(np.arange(len(ROWS)), ROWS)])


def wait_until(happened: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def blocks(rank: int, world_size: int, num: int = 6) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for part in np.array_split(np.arange(rank, len(ROWS), world_size), num):
        yield part, ROWS[part]


def assert_same(result: KMeansResult, expected: KMeansResult) -> None:
    for name, value in expected.to_arrays().items():
        other = getattr(result, name)
        same = value.tobytes() == other.tobytes() if isinstance(value, np.ndarray) else value == other
        assert same or name == "version", name


_version = iter(range(1000))
_attempt = iter(range(1, 1000))


class Ranks:
    """Two ranks as threads of this process."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        attempt = next(_attempt)
        self.clients = [connect("faults", rank, 2, attempt, TIMEOUT_S, patience_s=patience_s) for rank in (0, 1)]
        self.version = next(_version)
        self.results: dict[int, KMeansResult | BaseException] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, rank: int) -> None:
        def work() -> None:
            try:
                self.results[rank] = self.clients[rank].recluster(self.version, 12, 3, blocks(rank, 2))
            except BaseException as error:
                self.results[rank] = error

        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def finish(self) -> list[Any]:
        for thread in self._threads:
            thread.join(TIMEOUT_S + 10)
        return [self.results[rank] for rank in sorted(self.results)]


def test_undisturbed_ranks_get_the_bytes_of_one_process(run: StartedActors, expected: KMeansResult) -> None:
    ranks = Ranks()
    ranks.begin(0)
    ranks.begin(1)
    for result in ranks.finish():
        assert_same(result, expected)


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
    import ray

    key = (next(_attempt), next(_version))
    stored = [Stored(ray.put(block), len(block[0]), "") for block in blocks(0, 1, 5)]
    shards = [run.actors["shard-0"], run.actors["shard-1"]]
    group = RemoteShards(shards, key, stored, time.monotonic() + TIMEOUT_S, options, lambda key: None)
    victim = run.pids()["shard-1"]
    saboteur = Saboteur(group, method, occurrence, victim, how)
    result = KMeans(saboteur, options.num_iterations).fit(key[1], 12, 3, 256)
    assert run.pids()["shard-1"] != victim
    return result


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
    wait_until(lambda: not psutil.pid_exists(victim))
    # Rank 1 alone cannot fill the table of two, so only the kept result can answer it in time.
    again = ranks.clients[1]
    again._timeout_s = 30.0
    assert_same(again.recluster(ranks.version, 12, 3, blocks(1, 2)), expected)
    assert run.pids()["kmeans"] != victim


def decisions(client: Any, kill: Callable[[int], None], start: int = 0, stop: int = 12) -> list[str | None]:
    out = []
    for epoch in range(start, stop):
        client.plan(epoch)
        kill(epoch)
        scores = np.random.default_rng(epoch).standard_normal(32).tolist()
        growth = client.report(epoch, {"nmi": {"mean": 0.5}}, scores)
        out.append(None if growth is None else growth.decision_id)
    return out


def test_c1_controller_killed_around_its_decisions(run: StartedActors) -> None:
    undisturbed = LocalCluster(ControllerCore(CONFIG))
    expected = decisions(undisturbed, lambda epoch: None)
    assert sum(d is not None for d in expected) >= 2
    client = connect("faults", 0, 2, next(_attempt), TIMEOUT_S)
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
    wait_until(lambda: not psutil.pid_exists(victim))
    assert run.pids()[name] != victim


def test_actor_tells_where_it_is(run: StartedActors, tmp_path_factory: pytest.TempPathFactory) -> None:
    os.kill(run.pids()["shard-0"], STACKS_SIGNAL)
    stacks = tmp_path_factory.getbasetemp() / "run0" / "logs" / "stacks-shard-0.txt"
    wait_until(lambda: "most recent call first" in stacks.read_text())


def test_snapshot_restore_and_stale_attempts(run: StartedActors) -> None:
    old = connect("faults", 0, 2, next(_attempt), TIMEOUT_S)
    decisions(old, lambda epoch: None, 0, 2)
    kept = old.snapshot()
    new = connect("faults", 0, 2, next(_attempt), TIMEOUT_S)
    with pytest.raises(StaleMessage, match="attempt"):
        old.plan(2)
    new.restore(kept)
    assert new.snapshot() == kept
    assert new.plan(2).epoch == 2


def test_errors_cross_the_processes_as_one_sentence(run: StartedActors) -> None:
    client = connect("faults", 0, 1, next(_attempt), TIMEOUT_S)
    with pytest.raises(UserError, match="cannot make 5 clusters of 3 rows"):
        client.recluster(next(_version), 5, 0, [(np.arange(3), ROWS[:3])])
    with pytest.raises(UserError, match="row 6 are not finite"):
        client.recluster(next(_version), 2, 0, [(np.arange(6, 9), np.where(np.eye(3), np.nan, 0.0))])
    with pytest.raises(UserError, match="asked about epoch 99, but the next epoch is"):
        client.plan(99)


def test_timeouts_name_the_stage(run: StartedActors) -> None:
    lonely = connect("faults", 0, 2, next(_attempt), timeout_s=3.0)
    with pytest.raises(ClusterTimeout, match=r"embeddings of ranks \[1\]"):
        lonely.recluster(next(_version), 5, 0, blocks(0, 2))
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
from cluster.calls import PATIENCE_S
from cluster.client import connect
from cluster.ray_session import ensure_ray
address, rank, attempt, version = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
session = ensure_ray(address)
rows = np.random.default_rng(0).standard_normal((6000, 16)).astype(np.float32)
rows[100:200] = rows[:100]
client = connect("faults", rank, 2, attempt, 60.0)
mine = np.arange(rank, 6000, 2)
result = client.recluster(version, 12, 3, ((part, rows[part]) for part in np.array_split(mine, 9)))
parts = (result.centroids, result.labels, result.reserves)
print("digest", hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
client.close()
session.close()
"""


def test_ranks_as_processes_of_their_own(
    run: StartedActors, session: ray_session.RaySession, expected: KMeansResult
) -> None:
    attempt, version = next(_attempt), next(_version)
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
    import ray

    options = ActorOptions(num_shards=2, num_cpus=0.1, restart_timeout_s=0.5, call_timeout_s=10.0, num_iterations=12)
    started = actors.start("degraded", str(tmp_path / "journal.jsonl"), CONFIG, 1, options)
    try:
        client = connect("degraded", 0, 1, 1, TIMEOUT_S)
        ray.kill(started.actors["shard-0"], no_restart=True)
        assert_same(client.recluster(0, 12, 3, blocks(0, 1)), expected)
        ray.kill(started.actors["shard-1"], no_restart=True)
        with pytest.raises(ClusterTimeout, match="no shard actor is left"):
            client.recluster(1, 12, 3, blocks(0, 1))
    finally:
        started.close()
    assert not started.actors
