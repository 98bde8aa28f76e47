"""Small checkpoints whose content says which they are, and processes that write them until they are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import trainer.checkpoint
from trainer.checkpoint import Checkpoint, CheckpointStore


def make(step: int, attempt: int = 1, rows: int = 3) -> Checkpoint:
    """Return a checkpoint of `rows` KiB whose values are its step."""
    tensors = {"model/w": torch.full((rows, 256), float(step)), "optim/w/step": torch.tensor(float(step))}
    state = {"attempt": attempt, "epoch": step // 10, "step": step, "step_in_epoch": 0, "best": {"score": 0.5}}
    return Checkpoint(tensors, state)


def whole(checkpoint: Checkpoint | None) -> int:
    """Return the step of a checkpoint, after seeing that all of it is of that step."""
    assert checkpoint is not None
    step = int(checkpoint.state["step"])
    expected = make(step, checkpoint.state["attempt"], checkpoint.tensors["model/w"].shape[0])
    assert checkpoint.state == expected.state
    assert all(torch.equal(value, checkpoint.tensors[name]) for name, value in expected.tensors.items())
    return step


def in_child(work: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start `work` in a forked process."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def save_for_ever(root: Path, acknowledged: Path) -> None:
    """Save step after step; `acknowledged` holds the last one that `save` returned from."""
    torch.set_num_threads(1)
    store = CheckpointStore(root)
    file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT)
    for step in range(1, 100_000):
        store.save(make(step))
        os.pwrite(file, f"{step:8d}".encode(), 0)


class Killer:
    """Counts the moments at which a save touches the disk, and kills its process at the n-th."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def moment(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.moment()
            result = function(*arguments, **named)
            self.moment()
            return result

        return watched


def save_until_killed(root: Path, at: int, done: Path) -> None:
    """Save step 20 beside step 10 and die before or after the n-th touch of the disk; `done` if there was none."""
    torch.set_num_threads(1)
    killer, module, path_type = Killer(at), trainer.checkpoint, type(root)
    for name in ("save_file", "sync", "sha256_of", "write_text"):
        setattr(module, name, killer.around(getattr(module, name)))
    for name in ("rename", "touch", "mkdir", "write_text", "unlink"):
        setattr(path_type, name, killer.around(getattr(path_type, name)))
    CheckpointStore(root).save(make(20))
    killer.at = 0
    done.touch()
