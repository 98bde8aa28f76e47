"""X1: configurations made to break the reader; what comes in is a configuration, or one sentence and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.conftest import Recorder
from tests.faults.fuzz_cases import case
from tests.runs import ROOT, environment, subspace

SEED, ON_COMMAND_LINE = 4, 200


def module(name: str, *words: object) -> dict:
    command = [sys.executable, "-m", f"tests.faults.{name}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("tries", "build"), [(2_000, 60), pytest.param(10_000, 400, marks=pytest.mark.matrix)])
def test_x1_in_process(tries: int, build: int, tmp_path: Path, record: Recorder) -> None:
    folder, accepted = tmp_path / "fuzz", tmp_path / "accepted"
    folder.mkdir()
    found = module("fuzz_config", SEED, tries, folder, accepted)
    assert (found["uncaught"], found["created"], found["imported"]) == ([], [], [])
    assert found["accepted"] + found["refused"] == tries
    assert found["accepted"] > tries // 20 and found["reasons"] > 50  # the tries are of all kinds
    assert found["worst_ms"] < 1000
    built = module("build_accepted", accepted, build)
    assert built["uncaught"] == []
    assert built["built"] > build // 2
    figures = {**found, "uncaught": 0, "created": 0, "imported": 0, "built": built["built"]}
    record("X1", f"{tries:,} configurations, in process", seed=SEED, rc=2, **figures,
           refused_while_building=sum(built["refused"].values()))  # fmt: skip


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_x1_by_the_command_line(tmp_path: Path, record: Recorder) -> None:
    def once(number: int) -> int:
        folder = tmp_path / str(number)
        folder.mkdir()
        tried = case(SEED + 1, number, folder)
        if tried.content is not None:
            (folder / "c.yaml").write_bytes(tried.content)
        before = sorted(folder.iterdir())
        words = [word for word in (tried.path, *tried.words) if "\0" not in word]
        if len(words) <= len(tried.words):
            return 2  # the system passes on no null bytes
        done = subspace("train", *words, "--print-config", variables=dict(tried.variables))
        assert done.returncode in (0, 2), (number, done.stderr)
        assert "Traceback" not in done.stderr and bool(done.stdout) == (done.returncode == 0), (number, done.stderr)
        assert sorted(folder.iterdir()) == before
        return done.returncode

    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(once, range(ON_COMMAND_LINE)))
    assert 0 < codes.count(0) < ON_COMMAND_LINE
    record("X1", f"{ON_COMMAND_LINE} configurations by the command line", seed=SEED + 1, rc=2, accepted=codes.count(0),
           refused=codes.count(2), tracebacks=0)  # fmt: skip
