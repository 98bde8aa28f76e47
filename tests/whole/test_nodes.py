"""Two agents of torchrun, as on two machines: over two loopback addresses, and in network namespaces of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.agents import Machine, agent, free_port
from tests.runs import ROOT, assert_nothing_left, events, status, steps, subspace

pytestmark = [pytest.mark.slow, pytest.mark.site]
CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
RATE = "optim.lr=3e-4"  # float differences grow with the rate


@pytest.fixture
def namespaces() -> Iterator[list[Machine]]:
    """Two network namespaces joined by a cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"sub{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.99.7.{i + 1}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
        yield [Machine(("ip", "netns", "exec", name), f"10.99.7.{i + 1}") for i, name in enumerate(names)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")


def on_two(machines: list[Machine], run: Path, *words: str | Path) -> None:
    """Run to the end with an agent on each machine."""
    endpoint = f"{machines[0].address}:{free_port()}"
    with ExitStack() as ends:
        agents = [agent(machine, endpoint, "2", run, CONFIG, *words) for machine in machines]
        for process in agents:
            ends.callback(process.kill)
        for process in agents:
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0, out


@pytest.fixture(scope="module")
def one_rank(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an undisturbed run of one rank."""
    run = tmp_path_factory.mktemp("one") / "run"
    done = subspace("train", CONFIG, f"data.shards={digits}", RATE, "cluster.backend=local", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    return run


def assert_same_run(run: Path, other: Path) -> None:
    assert len(steps(run)) == len(steps(other)) == 24
    for a, b in zip(steps(run), steps(other), strict=True):
        assert a["subspace"] == b["subspace"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a["step"]
    for name in ("growth", "recluster"):
        (a,), (b,) = events(run, name), events(other, name)
        assert {key: a.get(key) for key in ("widths", "counts")} == {key: b.get(key) for key in ("widths", "counts")}


def test_two_loopback_addresses_with_ray_give_the_run_of_one_rank(one_rank: Path, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    machines = [Machine((), "127.0.0.1"), Machine((), "127.0.0.2")]
    on_two(machines, run, f"data.shards={digits}", RATE)
    assert status(run)["world_size"] == 2
    assert_same_run(run, one_rank)
    assert_nothing_left()


def test_two_network_namespaces_with_ray_give_the_run_of_one_rank(
    namespaces: list[Machine], one_rank: Path, digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    on_two(namespaces, run, f"data.shards={digits}", RATE)
    assert status(run)["world_size"] == 2
    assert_same_run(run, one_rank)
    assert_nothing_left()
