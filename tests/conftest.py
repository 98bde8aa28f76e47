"""What all tests share: quiet threads (few cores are shared with their own processes), digits, the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("RAY_AUTH_MODE", "token")

from data_shards.build import build

Answer = tuple[int, str, str]


OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")


@pytest.fixture(scope="module", autouse=True)
def no_rank() -> Iterator[None]:
    """Take back what a process group of one puts into the environment: commands started later would be ranks."""
    before = {name: os.environ[name] for name in OF_RANKS if name in os.environ}
    yield
    for name in OF_RANKS:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return shards of scikit-learn's digits at 16 pixels; only read."""
    folder = tmp_path_factory.mktemp("shards") / "digits16"
    build("digits", folder, size=16)
    return folder


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Return a function that runs the command line in this process: exit code, output, error."""
    from launch.cli import main

    def run(*words: str | Path) -> Answer:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        done = capsys.readouterr()
        assert "Traceback" not in done.err
        return int(end.value.code or 0), done.out, done.err

    return run


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process only; what it leaves in the environment would make others take us for a rank."""
    from trainer import distributed

    before = dict(os.environ)
    distributed.initialise(60)
    yield
    distributed.shut_down()
    os.environ.clear()
    os.environ.update(before)
