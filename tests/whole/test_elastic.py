"""A run goes on with another number of ranks: at the same sample, with the same global batches, to the same bytes."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.agents import Machine, agent, free_port
from tests.runs import ROOT, assert_nothing_left, content_hash, events, files_left, status, steps, subspace, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.site]
CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
WORDS = ("deterministic=true", "train.epochs=4", "checkpoint.every_steps=3")


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of one rank that nothing happens to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subspace("train", CONFIG, f"data.shards={digits}", *WORDS, "cluster.backend=local", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    return run


def assert_same_bytes(run: Path, other: Path) -> None:
    assert content_hash(run) == content_hash(other)
    losses = {line["step"]: line["loss"] for line in steps(run)}  # steps after the last checkpoint are taken twice
    assert losses == {line["step"]: line["loss"] for line in steps(other)}


def test_lost_machine_is_survived_by_the_others(undisturbed: Path, digits: Path, tmp_path: Path) -> None:
    """Kill one of two agents and all below it in mid-epoch: the other one goes on alone from the newest checkpoint."""
    run, endpoint = tmp_path / "run", f"127.0.0.1:{free_port()}"
    words = (CONFIG, f"data.shards={digits}", *WORDS, "--resume", "auto")
    with ExitStack() as ends:
        stays, leaves = (agent(Machine((), f"127.0.0.{i}"), endpoint, "1:2", run, *words) for i in (1, 2))
        for process in (stays, leaves):
            ends.callback(process.kill)
        wait_until(lambda: len(steps(run)) >= 5, "the first steps")
        assert status(run)["world_size"] == 2
        kill_all(leaves.pid)
        out, _ = stays.communicate(timeout=240)
        assert stays.returncode == 0, out
    assert status(run)["world_size"] == 1
    assert len(events(run, "restart")) >= 1
    assert_same_bytes(run, undisturbed)
    for folder in files_left():  # a machine without power does not tidy up
        assert Path(folder).name.startswith("ray")
        shutil.rmtree(folder)
    assert_nothing_left()


def kill_all(pid: int) -> None:
    """Have a machine lose its power: SIGKILL for an agent and everything below it."""
    process = psutil.Process(pid)
    for victim in [process, *process.children(recursive=True)]:
        victim.kill()
