"""A fingerprint names what differs, and a deterministic run has its instruction set pinned before torch looks."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import fingerprint
from launch.config import RunConfig
from launch.torchrun import environment
from tests.ranks import run_on_ranks
from tests.runs import ROOT


def config(deterministic: bool) -> RunConfig:
    return RunConfig.model_validate({"data": {"shards": "nowhere"}, "deterministic": deterministic})


def test_it_is_json_and_stays_the_same() -> None:
    found = fingerprint.fingerprint()
    assert json.loads(json.dumps(found)) == found == fingerprint.fingerprint()
    assert {"python", "torch", "numpy", "faiss", "num_threads", "cpu_capability", "onednn_isa", "device"} <= set(found)
    assert all(found[name] for name in ("python", "torch", "numpy", "cpu_capability", "device"))


def test_every_difference_changes_the_hash_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    found = fingerprint.fingerprint()
    for name in found:
        other = {**found, name: "another"}
        assert fingerprint.short_hash(other) != fingerprint.short_hash(found)
        assert fingerprint.changes(other, found) == {name: ["another", found[name]]}
    with caplog.at_level(logging.WARNING):
        fingerprint.warn(fingerprint.changes({**found, "torch": "2.0"}, found))
    assert len(caplog.records) == 1
    assert f"torch was 2.0, is {found['torch']}" in caplog.text


def test_nothing_is_said_without_a_difference(caplog: pytest.LogCaptureFixture) -> None:
    found = fingerprint.fingerprint()
    assert fingerprint.changes(found, found) == fingerprint.changes({}, found) == {}
    fingerprint.warn({})
    assert not caplog.records


def _unlike(own: list[dict[str, str]]) -> list[int]:
    return fingerprint.unlike_ranks(own[int(os.environ["RANK"])])


def test_ranks_that_are_not_like_the_first_are_named_everywhere() -> None:
    own = [{"torch": "2.13"}, {"torch": "2.12"}, {"torch": "2.13"}]
    assert run_on_ranks(_unlike, 3, own) == [[1], [1], [1]]


def test_it_is_stored_beside_what_the_launcher_wrote(tmp_path: Path) -> None:
    (tmp_path / "env.json").write_text('{"command": ["subspace"]}')
    fingerprint.store(tmp_path, {"torch": "2.13"})
    stored = json.loads((tmp_path / "env.json").read_text())
    assert stored["command"] == ["subspace"]
    assert stored["fingerprint"] == {"torch": "2.13", "hash": fingerprint.short_hash({"torch": "2.13"})}


def test_only_deterministic_runs_are_pinned() -> None:
    free, fixed = (environment(config(deterministic), 1, 1) for deterministic in (False, True))
    assert not {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"} & set(free)
    assert fixed["OMP_NUM_THREADS"] == "1"
    assert fixed.items() >= fingerprint.pinned().items()


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" not in fingerprint.pinned(), reason="this processor has no AVX2")
def test_pins_reach_torch_and_the_import_does_not() -> None:
    code = (
        "import os, sys; from launch.fingerprint import fingerprint, pinned;"
        "assert 'torch' not in sys.modules; os.environ.update(pinned()); print(fingerprint()['cpu_capability'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "AVX2\n", done.stderr
