"""Every fault test writes what it measured, one JSON line per fault; `make faults` turns the lines into docs/faults.md.

    def test_a1_kill_in_a_save_loop(record): ... record("A1", "SIGKILL in a save loop", trials=200, lost=0)

A test sees for itself that its fault fired; otherwise it fails. What cannot run here is `record.impossible(id, why)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import whole
from tests.faults.matrix import MATRIX
from tests.runs import assert_nothing_left, events, subspace

FIELDS = ("seed", "injected_at_step", "detected_s", "recovered_s", "steps_lost", "bytes_lost", "restarts", "bitwise",
          "leaks", "rc")  # fmt: skip


class Recorder:
    """Appends lines to the file that SUBSPACE_FAULTS names, or to nothing."""

    def __init__(self) -> None:
        self._path = Path(os.environ.get("SUBSPACE_FAULTS", os.devnull))

    def __call__(self, row: str, fault: str, **figures: Any) -> None:
        """Record one fault of matrix row `row`; the fields of the contract by name, any other figure beside them."""
        self._write(row, fault=fault, **figures)

    def impossible(self, row: str, reason: str) -> None:
        """Record why a row cannot run on this machine, and skip the test."""
        self._write(row, impossible=reason)
        pytest.skip(reason)

    def _write(self, row: str, **values: Any) -> None:
        assert row in MATRIX, f"{row} is not in the matrix"
        line = {"id": row, **dict.fromkeys(FIELDS), **values, "env_fingerprint": _fingerprint()}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _fingerprint() -> str:
    import numpy
    import torch

    what = [platform.python_version(), torch.__version__, numpy.__version__, torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256(" ".join(what).encode()).hexdigest()[:8]


@pytest.fixture(scope="session")
def record() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the deterministic run that nothing happens to; Ray or not is no part of its bytes."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subspace(*whole.local(digits, run))
    assert done.returncode == 0, done.stderr
    assert len(events(run, "growth")) == len(events(run, "recluster")) == 1
    return run


@pytest.fixture(scope="module", autouse=True)
def nothing_left(record: Recorder, request: pytest.FixtureRequest) -> Iterator[None]:
    """After each file: no process and no temporary file of its runs is left."""
    yield
    assert_nothing_left()
    record("Z1", request.path.name, leaks=0)
