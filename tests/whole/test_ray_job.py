"""Runs submitted to a real Ray cluster of several raylets with token authentication: alone, stopped, and robbed of a
node. All share one cluster, as runs do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ray_cluster import RayCluster
from tests.runs import (
    ROOT,
    assert_nothing_left,
    command,
    environment,
    events,
    lines,
    status,
    steps,
    subspace,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.site, pytest.mark.timeout(900)]
CONFIG = "configs/smoke/growth.yaml"
# One k-means actor is enough here; losses are compared at a rate at which float differences do not grow.
SAME = ("optim.lr=3e-4", "train.steps_per_epoch=40", "cluster.num_shards=1", "cluster.num_cpus=0.5")
PATIENCE_S = 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def reference(digits: Path, runs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the same run with `subspace train`, two ranks and no Ray; it works while the cluster is started."""
    words = (f"data.shards={digits}", *SAME, "cluster.backend=local", "--nproc", "2", "--run-dir", runs / "undisturbed")
    process = subprocess.Popen(command("train", ROOT / CONFIG, *words), env=environment(), stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def cluster(reference: subprocess.Popen[bytes]) -> Iterator[RayCluster]:
    cluster = RayCluster(num_nodes=2, cpus_per_node=3)
    try:
        yield cluster
    finally:
        cluster.close()
    assert_nothing_left()


@pytest.fixture(scope="module")
def undisturbed(reference: subprocess.Popen[bytes], runs: Path) -> Path:
    """Return the run folder of the reference."""
    assert reference.wait(PATIENCE_S) == 0
    return runs / "undisturbed"


class Submission:
    """`subspace submit ray` of a run in the background, and what it prints."""

    def __init__(self, cluster: RayCluster, digits: Path, run: Path, *words: str) -> None:
        self._log = run.with_name(f"{run.name}-{time.monotonic_ns()}.log")
        given = ("--address", cluster.address, "--num-workers", "2", "--run-dir", run, f"data.shards={digits}", *SAME)
        with self._log.open("w") as file:
            self._process = subprocess.Popen(
                command("submit", "ray", CONFIG, *given, *words),
                env={**environment(), **cluster.variables},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        try:
            return self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()

    def printed(self) -> str:
        return self._log.read_text()


def same_result(run: Path, undisturbed: Path) -> None:
    assert status(run)["state"] == "completed"
    assert [line["step"] for line in steps(run)] == list(range(1, 121))
    for mine, theirs in zip(steps(run), steps(undisturbed), strict=True):
        assert mine["subspace"] == theirs["subspace"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4), mine["step"]
    for name in ("growth", "recluster"):
        assert [e["step"] for e in events(run, name)] == [e["step"] for e in events(undisturbed, name)]
    assert events(run, "recluster")[0]["counts"] == events(undisturbed, "recluster")[0]["counts"]


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with the code, changed so that its use shows."""
    folder = tmp_path_factory.mktemp("code")
    for name in ("launch", "trainer", "cluster", "data_shards", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "launch" / "ray_job.py").open("a") as file:
        file.write('print("this is the uploaded code")\n')
    return folder


def test_two_runs_share_a_cluster_and_one_is_stopped(
    cluster: RayCluster, digits: Path, runs: Path, undisturbed: Path, uploaded: Path
) -> None:
    assert len(events(undisturbed, "growth")) == len(events(undisturbed, "recluster")) == 1
    one = Submission(cluster, digits, runs / "one", "--working-dir", str(uploaded))
    two = Submission(cluster, digits, runs / "two", "--submission-id", "two")
    wait_until(lambda: len(steps(runs / "two")) >= 5, "the first steps", timeout_s=PATIENCE_S)
    seen = "\n".join(cluster.processes())
    cluster.stop_job("two")
    assert two.ended() == 75, two.printed()
    assert status(runs / "two")["state"] == "preempted"
    assert 5 <= status(runs / "two")["step"] < 120
    assert len(events(runs / "two", "preempted")) == 1
    assert one.ended() == 0, one.printed()
    same_result(runs / "one", undisturbed)
    assert "this is the uploaded code" in one.printed()
    assert "recall@1" in one.printed()  # the log of the run and its table of scores
    assert (runs / "one" / "report.html").exists()
    assert not (runs / "one" / "logs" / "ray_train").exists()
    assert "launch ray-job" in seen
    for text in (seen, one.printed(), two.printed(), *contents(runs / "one"), *contents(runs / "two")):
        assert cluster.token not in text


def contents(folder: Path) -> list[str]:
    return [path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()]


def test_stopped_run_goes_on_and_survives_the_death_of_a_raylet(
    cluster: RayCluster, digits: Path, runs: Path, undisturbed: Path
) -> None:
    run = runs / "two"
    stopped_at = status(run)["step"]
    again = Submission(cluster, digits, run, "ray.placement=SPREAD")
    wait_until(lambda: len(steps(run)) >= stopped_at + 4, "more steps", timeout_s=PATIENCE_S)
    victim = cluster.raylet_of("RayTrainWorker", run)
    os.kill(victim, signal.SIGKILL)
    assert again.ended() == 0, again.printed()
    assert not psutil.pid_exists(victim) or psutil.Process(victim).status() == psutil.STATUS_ZOMBIE
    same_result(run, undisturbed)
    going_on, _ = events(run, "restart")
    assert going_on["step"] == stopped_at
    assert status(run)["attempt"] == 3
    assert [e["event"] for e in lines(run / "events.jsonl")].count("completed") == 1


def test_what_the_cluster_can_never_hold_is_refused(cluster: RayCluster, digits: Path, runs: Path) -> None:
    done = Submission(cluster, digits, runs / "large", "--cpus-per-worker", "100")
    assert done.ended() == 2, done.printed()
    assert "need 200.5 CPU, and the whole cluster has" in done.printed()
    assert "Traceback" not in done.printed()


def test_wrong_token_is_refused(cluster: RayCluster, runs: Path) -> None:
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    words = ("submit", "ray", ROOT / CONFIG, "--address", cluster.address, "--run-dir", runs / "nothing")
    done = subspace(*words, variables=wrong)
    assert done.returncode == 2
    [sentence] = done.stderr.splitlines()
    assert sentence.startswith(f"subspace: the Ray cluster at {cluster.address} refuses the token")
    assert not (runs / "nothing").exists()
