"""Slow ranks are named and left alone; ranks with unlike shares meet at the end of every epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Recorder
from tests.faults.whole import EVERY, Fault, broken, local, restarts, same
from tests.runs import events, status, subspace

pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(1800)]
SLOW_S = 0.5


def test_h4_slow_rank_is_named_and_lives(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    slow = Fault("sleep", "trainer.engines.base:Engine.embed", call=1, seconds=SLOW_S, once=False)
    assert broken(tmp_path, local(digits, run), slow) == 0
    found = events(run, "straggler")
    assert [(e["rank"], e["phase"]) for e in found] == [(1, "step")] * 3
    assert min(e["seconds"] for e in found) >= 8 * SLOW_S
    record("H4", "rank 1 computes half a second longer at every step", detection_steps=found[0]["step"],
           restarts=restarts(run), bitwise=same(run, undisturbed))  # fmt: skip


def test_h4_slow_data_is_named_and_lives(digits: Path, undisturbed: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    slow = Fault("sleep", "data_shards.loader:_TrainItems.__getitem__", call=1, seconds=SLOW_S, once=False)
    assert broken(tmp_path, local(digits, run), slow) == 0
    found = events(run, "straggler")
    assert [(e["rank"], e["phase"]) for e in found] == [(1, "data")] * 3
    record("H4", "rank 1 gets its data half a second late at every step", detection_steps=found[0]["step"],
           restarts=restarts(run), bitwise=same(run, undisturbed))  # fmt: skip


def test_h4_ordinary_run_has_no_straggler(undisturbed: Path, record: Recorder) -> None:
    found = events(undisturbed, "straggler")
    record("H4", "ordinary run on shared cores", false_positives=len(found))
    assert found == []


@pytest.mark.parametrize("nproc", [2, 3])
def test_h5_unlike_shares_meet(nproc: int, digits: Path, tmp_path: Path, record: Recorder) -> None:
    """Blocks of 200 rows: one rank embeds more of them than another, and the last block is short."""
    run = tmp_path / "run"
    words = local(digits, run, "evaluate.batch_size=200")
    done = subspace(*words, f"launch.nproc={nproc}", "launch.timeout_s=30")
    assert done.returncode == 0, done.stderr
    assert status(run)["world_size"] == nproc
    record("H5", f"unlike numbers of rows on {nproc} ranks", rc=0, restarts=restarts(run), every_steps=EVERY)
