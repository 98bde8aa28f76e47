"""Runs as jobs of a real Slurm with two nodes: to the end, requeued, at the time limit, as a sweep; and wrong usage.

Jobs are disturbed in the middle of an epoch: their ranks are held by SIGSTOP until Slurm's signal is on its way. What
they end with is compared to a run of one rank that `subspace train` makes inside an allocation.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import slurm_site
from tests.runs import ROOT, assert_nothing_left, command, content_hash, events, status, steps, subspace, wait_until
from tests.slurm_site import Site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.site,
    pytest.mark.skipif(bool(slurm_site.missing()), reason=f"no Slurm here: {', '.join(slurm_site.missing())} missing"),
]
CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
STEPS = 24  # per epoch; the test disturbs after the first quarter of the second epoch
STRANGE = 'it\'s "one" $(touch injected) `touch injected` 100% ; touch injected &'


def words(digits: Path) -> list[str | Path]:
    settings = ("deterministic=true", "cluster.backend=local", f"train.steps_per_epoch={STEPS}")
    return [CONFIG, f"data.shards={digits}", *settings]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with slurm_site.running() as site:
        yield site
    assert_nothing_left()


def submitted(site: Site, digits: Path, run: Path, *more: str | Path) -> str:
    """Submit the run for two nodes; return the job's id."""
    given = (*words(digits), "--nodes", "2", "--run-dir", run, *more)
    done = subspace("submit", "slurm", *given, variables=site.variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ranks(site: Site, run: Path) -> list[psutil.Process]:
    """Return the ranks of a run, without the agents that started them."""
    found = []
    for process in slurm_site.of_site(site):
        with contextlib.suppress(psutil.Error):
            if str(run) in process.cmdline() and "RANK" in process.environ():
                found.append(process)
    return found


def hold_in_mid_epoch(site: Site, run: Path) -> list[psutil.Process]:
    """Stop all ranks of a run in the second epoch and return them."""
    wait_until(lambda: len(steps(run)) >= 1, f"the first step:\n{output(run)}")
    held = ranks(site, run)
    assert len(held) == 2
    wait_until(lambda: len(steps(run)) >= STEPS * 5 // 4, "the second epoch")
    for rank in held:
        rank.suspend()
    return held


def release(run: Path, held: list[psutil.Process]) -> None:
    """Let ranks go on once both agents have passed the signal on to them."""
    wait_until(lambda: output(run).count("death signal") == 2, f"the signal:\n{output(run)}")
    for rank in held:
        rank.resume()


def output(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "slurm").glob("*.out")))


def scores(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation" / "test.json").read_text())
    return found


once = functools.cache(content_hash)


def same_result(run: Path, undisturbed: Path) -> None:
    assert status(run)["state"] == "completed"
    assert content_hash(run) == once(undisturbed)
    assert scores(run) == scores(undisturbed)
    assert [(s["step"], s["loss"]) for s in steps(run)] == [(s["step"], s["loss"]) for s in steps(undisturbed)]


def saved_in_mid_epoch(run: Path) -> None:
    """Assert that the run was stopped once within the second epoch, and that not a step of it was lost."""
    (stop,), (restart,) = events(run, "preempted"), events(run, "restart")
    assert STEPS < stop["step"] < 2 * STEPS
    assert restart["step"] == stop["step"]


@pytest.fixture(scope="module")
def at_its_limit(
    site: Site, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Future[str], Path]]:
    """Return a job that meets its time limit in mid-epoch, and the future of its id.

    Slurm looks at limits every half minute, so other tests run meanwhile. The limit becomes short only when the ranks
    are held: how fast the machine starts them does not matter.
    """
    run = tmp_path_factory.mktemp("limit") / "run"
    job = submitted(site, digits, run, "--time", "60", "--signal-seconds", "90")
    held = hold_in_mid_epoch(site, run)
    site.call("scontrol", "update", f"JobId={job}", "TimeLimit=2")

    def go_on() -> str:
        release(run, held)
        site.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
        return job

    with ThreadPoolExecutor(1) as background:
        yield background.submit(go_on), run


@pytest.fixture(scope="module")
def undisturbed(site: Site, digits: Path, at_its_limit: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one rank by `subspace train`, which does not care that it is inside an allocation of two nodes.

    Made after `at_its_limit`, so that the half minute there is used.
    """
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train = command("train", *words(digits), "launch.nproc=1", "--run-dir", run)
    site.call("salloc", "--nodes=2", *train, timeout_s=240)
    assert status(run)["world_size"] == 1
    assert len(events(run, "growth")) == len(events(run, "recluster")) == 1
    return run


def test_job_on_two_nodes_runs_to_its_end(site: Site, digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submitted(site, digits, run)
    again = subspace("submit", "slurm", *words(digits), "--nodes", "2", "--run-dir", run, variables=site.variables)
    assert again.returncode == 2
    assert f"scancel {job}" in again.stderr  # two jobs would train in the same folder
    assert site.wait_for_end(job) == ["COMPLETED"], output(run)
    assert status(run)["world_size"] == 2
    assert events(run, "restart") == []
    same_result(run, undisturbed)
    again = subspace("submit", "slurm", *words(digits), "--nodes", "2", "--run-dir", run, variables=site.variables)
    assert again.returncode == 2
    assert "complete already" in again.stderr


def test_requeue_in_mid_epoch(site: Site, digits: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submitted(site, digits, run)
    held = hold_in_mid_epoch(site, run)
    site.call("scontrol", "requeue", job)
    release(run, held)
    assert site.wait_for_end(job) == ["COMPLETED"], output(run)
    saved_in_mid_epoch(run)
    same_result(run, undisturbed)


def test_sweep_is_an_array_whose_tasks_requeue_alone(
    site: Site, digits: Path, undisturbed: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / STRANGE
    job = submitted(site, digits, sweep, "--sweep", "seed=0,1", "--sbatch-option=comment=" + STRANGE)
    moved = sweep / "seed=1"
    held = hold_in_mid_epoch(site, moved)
    site.call("scancel", "--signal=USR1", f"{job}_1")  # as preemption with a grace time does
    release(sweep, held)
    assert site.wait_for_end(job) == ["COMPLETED", "COMPLETED"], output(sweep)
    saved_in_mid_epoch(moved)
    assert status(moved)["state"] == "completed"
    assert content_hash(moved) != once(undisturbed)  # another seed
    assert events(sweep / "seed=0", "restart") == []
    assert scores(sweep / "seed=0") == scores(undisturbed)
    assert not list(tmp_path.rglob("injected"))


def test_time_limit_in_mid_epoch(site: Site, at_its_limit: tuple[Future[str], Path], undisturbed: Path) -> None:
    signalled, run = at_its_limit
    job = signalled.result(180)
    assert site.wait_for_end(job) == ["COMPLETED"], output(run)
    assert "Received 10 death signal" in output(run)  # SIGUSR1, by Slurm itself
    saved_in_mid_epoch(run)
    same_result(run, undisturbed)


def test_what_sbatch_refuses_is_said_in_its_words_and_leaves_nothing(site: Site, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    given = (*words(digits), "--nodes", "2", "--run-dir", run, "--partition", "nowhere")
    done = subspace("submit", "slurm", *given, variables=site.variables)
    assert done.returncode == 2
    assert done.stderr.startswith("subspace: sbatch refused the job: invalid partition specified: nowhere")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
