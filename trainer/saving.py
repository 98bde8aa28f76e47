"""Writes the checkpoints of rank 0, at once or in a thread beside the training; what it acknowledges is durable.

One save is under way at most. In the thread it works on a copy, so training goes on; how it ended is told with the next
save, or by `drain`.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_shards.errors import UserError
from trainer.checkpoint import Checkpoint, CheckpointStore


@dataclass(frozen=True)
class Saved:
    """How a save ended; `error` is empty when the checkpoint is durable, else its sentence, with its exit code."""

    epoch: int
    step: int
    best: bool
    error: str = ""
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Saver:
    """Saves into a store.

    Args:
        asynchronous: save in a thread, from a copy of the tensors; costs their size in host memory.
    """

    def __init__(self, store: CheckpointStore, asynchronous: bool) -> None:
        self.store, self._asynchronous = store, asynchronous
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[Saved]] = []

    def submit(self, checkpoint: Checkpoint, best: bool) -> list[Saved]:
        """Save a checkpoint; return how the saves ended that have ended by now."""
        ended = self.drain()
        if not self._asynchronous:
            return [*ended, self._save(checkpoint, best)]
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in checkpoint.tensors.items()}
        self._pending.append(self._pool.submit(self._save, Checkpoint(tensors, checkpoint.state), best))
        return ended

    def drain(self) -> list[Saved]:
        """Wait for the save that is under way; return how it ended."""
        ended = [pending.result() for pending in self._pending]
        self._pending = []
        return ended

    def _save(self, checkpoint: Checkpoint, best: bool) -> Saved:
        saved = Saved(checkpoint.state["epoch"], checkpoint.state["step"], best)
        try:
            self.store.save(checkpoint, best)
        except UserError as error:  # told to all ranks, which then go on or stop together
            return replace(saved, error=str(error), exit_code=error.exit_code)
        return saved
