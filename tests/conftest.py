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
    """A process group of this process only."""
    from trainer import distributed

    distributed.initialise(60)
    yield
    distributed.shut_down()
