"""Keeps the run: checkpoints that all ranks know the fate of, and the way back to the best one.

Rank 0 writes; every rank hears how saves ended, so that they go on without a checkpoint together, or stop together.
"""

from __future__ import annotations

from torch import Tensor

from cluster.growth import Rollback
from cluster.local import ClusterClient
from data_shards.errors import DataIntegrityError, UserError
from trainer import distributed
from trainer.checkpoint import SaveFailed, read
from trainer.engines.base import Engine
from trainer.objectives.objective import Objective
from trainer.recorder import Recorder
from trainer.saving import Saved, Saver
from trainer.state import RunState


class NotSaved(UserError):
    """A checkpoint was not written and the run may not go on without; the exit code is that of the reason."""

    final = True

    def __init__(self, saved: Saved) -> None:
        super().__init__(saved.error)
        self.exit_code = saved.exit_code


class Keeper:
    """Saves and restores what the loop changes: engine, objective and state.

    Args:
        stop_on_error: a checkpoint that cannot be written ends the run, whatever the reason.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        state: RunState,
        cluster: ClusterClient,
        saver: Saver,
        recorder: Recorder,
        attempt: int,
        stop_on_error: bool,
    ) -> None:
        self.engine, self.objective, self.state = engine, objective, state
        self.cluster, self.saver, self.recorder, self.attempt = cluster, saver, recorder, attempt
        self.stop_on_error = stop_on_error
        self.not_saved: Saved | None = None

    def save(self, beside: dict[str, Tensor], best: bool = False) -> None:
        """Save this moment, with tensors `beside` those of engine, objective and state; `best`: it has the best
        validation score so far."""
        with distributed.stage("gather for the checkpoint"):
            self.check_replicas()
            tensors = self.engine.tensors()  # every rank has a share in it
        ended = []
        if distributed.rank() == 0:
            tensors = {**tensors, **beside, **self.objective.tensors()}
            checkpoint = self.state.to_checkpoint(tensors, self.cluster.snapshot(), self.attempt)
            ended = self.saver.submit(checkpoint, best)
        self._settle(ended)

    def check_replicas(self) -> None:
        """Compare what every rank should hold alike; all ranks ask together."""
        self.engine.check_replicas(self.state.step, list(self.objective.parameters()))

    def drain(self) -> None:
        """Wait for the save that is under way."""
        self._settle(self.saver.drain())

    def check_complete(self) -> None:
        """Raise NotSaved if the last save failed: the best weights may be among what is missing."""
        if self.not_saved is not None:
            raise NotSaved(self.not_saved)

    def roll_back(self, rollback: Rollback) -> None:
        """Take weights, moments, partition and assignment from the best checkpoint; all else goes on from here.

        Raises:
            DataIntegrityError: it is not there.
        """
        self.drain()
        store = self.saver.store
        told = distributed.broadcast_json(store.best_path().name if distributed.rank() == 0 else None)
        checkpoint = read(store.root / told)
        state = self.state
        found = RunState.from_checkpoint(checkpoint, state.saliency)
        if found.partition.widths != rollback.widths or found.best != state.best:
            raise DataIntegrityError(
                f"{store.root / told} is not the best checkpoint, of epoch {state.best['epoch']}, to which a split is"
                " taken back: it could not be written then, or is gone"
            )
        self.engine.load_tensors(checkpoint.tensors)
        self.objective.load_tensors(checkpoint.tensors, found.partition)
        state.saliency.reset()
        state.partition = state.partition.grow(rollback.widths)  # one version further, not back
        state.assignment = found.assignment

    def _settle(self, ended: list[Saved]) -> None:
        """Have all ranks hear how saves ended."""
        with distributed.stage("checkpoint"):
            told = distributed.broadcast_json([saved.to_json() for saved in ended])
        for saved in [Saved(**values) for values in told]:
            self.not_saved = saved if saved.error else None
            where = {"epoch": saved.epoch, "step": saved.step}
            if not saved.error:
                self.recorder.event("checkpoint", self.state, **where, best=saved.best)
                self.recorder.status("running", self.state)
                continue
            self.recorder.event("not_saved", self.state, **where, reason=saved.error)
            if self.stop_on_error or saved.exit_code != SaveFailed.exit_code:
                raise NotSaved(saved)
