"""Saves beside the training: acknowledged when durable, of the tensors as they were, one at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.errors import UserError
from trainer.checkpoint import Checkpoint, CheckpointStore, SaveFailed
from trainer.saving import Saved, Saver


def checkpoint(step: int, weights: torch.Tensor) -> Checkpoint:
    return Checkpoint({"model/w": weights}, {"epoch": 0, "step": step, "attempt": 1})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_told_is_on_disk(tmp_path: Path, asynchronous: bool) -> None:
    store = CheckpointStore(tmp_path)
    saver = Saver(store, asynchronous)
    told = [*saver.submit(checkpoint(1, torch.ones(3)), best=True), *saver.drain()]
    assert told == [Saved(0, 1, True)]
    newest = store.newest()
    assert newest is not None
    assert newest.state["step"] == 1


def test_the_thread_saves_the_values_of_the_moment_and_the_next_save_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, gate = CheckpointStore(tmp_path), threading.Event()
    write = store._write

    def blocked(*arguments: Any) -> Any:
        assert gate.wait(30)
        return write(*arguments)

    monkeypatch.setattr(store, "_write", blocked)
    saver, weights = Saver(store, asynchronous=True), torch.ones(3)
    assert saver.submit(checkpoint(1, weights), False) == []
    weights.zero_()
    assert store.newest() is None  # not durable, not told
    gate.set()
    assert saver.submit(checkpoint(2, weights), False) == [Saved(0, 1, False)]
    assert saver.drain() == [Saved(0, 2, False)]
    newest = store.newest()
    assert newest is not None and newest.tensors["model/w"].sum() == 0
    first = next(path for path, manifest in store.candidates() if manifest["step"] == 1)
    from trainer.checkpoint import read

    assert read(first).tensors["model/w"].sum() == 3


def test_errors_are_told_with_their_code_and_programming_errors_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    saver = Saver(store, asynchronous=False)
    poisoned = checkpoint(1, torch.tensor([float("nan")]))
    assert saver.submit(poisoned, False)[0].exit_code == 4

    def fail(error: Exception) -> Any:
        def save(*arguments: Any) -> None:
            raise error

        monkeypatch.setattr(store, "save", save)

    fail(SaveFailed("no room"))
    assert saver.submit(checkpoint(1, torch.ones(1)), False) == [Saved(0, 1, False, "no room", 70)]
    fail(UserError("odd"))
    assert saver.submit(checkpoint(1, torch.ones(1)), False)[0].exit_code == 2
    fail(TypeError("a bug"))
    with pytest.raises(TypeError):
        saver.submit(checkpoint(1, torch.ones(1)), False)
