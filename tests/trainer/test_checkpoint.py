"""A checkpoint is what was written, or it is not seen."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from data_shards import files
from data_shards.errors import DataIntegrityError, UserError
from trainer.checkpoint import Checkpoint, CheckpointStore, Poisoned, SaveFailed, content_hash, read


def make(step: int, value: float = 1.0) -> Checkpoint:
    tensors = {
        "model/w": torch.full((3, 4), value),
        "optim/w/step": torch.tensor(float(step)),
        "labels": torch.arange(5),
    }
    return Checkpoint(tensors, {"epoch": step // 10, "step": step, "step_in_epoch": 0, "best": {"score": 0.5}})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.state == b.state and all(torch.equal(value, b.tensors[name]) for name, value in a.tensors.items())


def test_round_trip_and_pointers(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.newest() is None
    with pytest.raises(UserError, match="no checkpoint"):
        store.best()
    store.save(make(10), best=True)
    store.save(make(20))
    newest = store.newest()
    assert newest is not None
    assert same(newest, make(20))
    assert same(store.best(), make(10))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000020"


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20, 30, 40):
        store.save(make(step), best=step == 10)
    assert [path.name for path, _ in store.candidates()] == ["step-00000040", "step-00000030", "step-00000010"]
    assert (tmp_path / "best").read_text() == "step-00000010"


def test_incomplete_ones_are_ignored_and_overwritten(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(make(10))
    (store.save(make(20)) / "COMPLETE").unlink()
    newest = store.newest()
    assert newest is not None
    assert newest.state["step"] == 10
    store.save(make(20, value=7.0))
    newest = store.newest()
    assert newest is not None
    assert same(newest, make(20, value=7.0))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_every_flipped_bit_and_truncation_is_noticed(tmp_path: Path, name: str) -> None:
    path = CheckpointStore(tmp_path).save(make(10)) / name
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read(path.parent)
        except (DataIntegrityError, UserError):
            continue
        assert name == "manifest.json"  # a flip that turns one white space into another changes nothing read
        assert same(found, make(10))
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataIntegrityError, match="damaged"):
            read(path.parent)


def test_damaged_newest_falls_back_loudly_and_all_damaged_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    first, second = store.save(make(10)), store.save(make(20))
    (second / "state.json").write_text("{}")
    newest = store.newest()
    assert newest is not None
    assert newest.state["step"] == 10
    assert "step-00000020" in caplog.text
    (first / "tensors.safetensors").unlink()
    with pytest.raises(DataIntegrityError, match="every checkpoint"):
        store.newest()


def test_another_format_is_refused_by_its_number(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(make(10))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match="format 99") as refusal:
        CheckpointStore(tmp_path).newest()
    assert not isinstance(refusal.value, DataIntegrityError)


def test_poisoned_and_failed_saves_leave_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path)
    store.save(make(10))
    with pytest.raises(Poisoned, match="non-finite values in model/w"):
        store.save(make(20, value=float("nan")))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.save_file", full)
    with pytest.raises(SaveFailed, match="No space left"):
        store.save(make(20))
    newest = store.newest()
    assert newest is not None
    assert newest.state["step"] == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000010"]


def _save_for_ever(root: Path) -> None:
    torch.set_num_threads(1)
    store = CheckpointStore(root)
    for step in range(1, 100_000):
        store.save(make(step, value=float(step)))
        (root.parent / "acknowledged").write_text(str(step))


def test_killed_while_saving_never_loses_an_acknowledged_one(tmp_path: Path) -> None:
    """A1 of the fault list, in small: SIGKILL at random moments of a save loop."""
    context = multiprocessing.get_context("fork")
    draw = random.Random(1)
    for trial in range(12):
        root = tmp_path / str(trial) / "checkpoints"
        root.mkdir(parents=True)
        process = context.Process(target=_save_for_ever, args=(root,))
        process.start()
        acknowledged = root.parent / "acknowledged"
        while not acknowledged.exists():
            time.sleep(0.005)
        time.sleep(draw.random() * 0.1)  # the moment of the kill is the random part of the test
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        newest = CheckpointStore(root).newest()
        assert newest is not None
        step = newest.state["step"]
        assert step >= int(acknowledged.read_text() or 0)
        assert same(newest, make(step, value=float(step)))


def test_content_hash_sees_values_names_and_position_only() -> None:
    base = content_hash(make(10))
    assert base == content_hash(make(10))
    assert base != content_hash(make(10, value=2.0))
    assert base != content_hash(make(11))
    renamed = make(10)
    assert base != content_hash(Checkpoint({**renamed.tensors, "x": torch.zeros(1)}, renamed.state))
    assert base == content_hash(Checkpoint(renamed.tensors, {**renamed.state, "attempt": 9, "time": 1.0}))


def test_sync_is_asked_for_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = files.sync

    def spy(path: Path) -> None:
        asked.append(path.name)
        original(path)

    monkeypatch.setattr("trainer.checkpoint.sync", spy)
    CheckpointStore(tmp_path).save(make(10))
    for name in ("tensors.safetensors", "state.json", "manifest.json", "COMPLETE", "step-00000010"):
        assert name in asked
