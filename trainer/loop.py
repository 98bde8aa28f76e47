"""The training loop: one rank's walk through the epochs.

    plan -> recluster -> train one subspace per step -> evaluate -> report -> grow or take back -> checkpoint

The controller plans and decides, every rank applies; all that is random is keyed, so a rank that starts again from a
checkpoint walks the same way. Rank 0 alone talks to the controller, writes files and keeps scores.

Legend: B global batch, n rows of this rank, D embedding width, K subspaces, S training samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cluster.growth import Change, Growth, Rollback, change_from_json
from cluster.local import ClusterClient
from cluster.plan import EpochPlan
from data_shards import order
from data_shards.augment import AugmentConfig
from data_shards.loader import Batch, train_loader
from data_shards.order import GlobalBatch
from data_shards.reader import SplitReader
from data_shards.samplers import batch_slice, labels_of, rows_of
from trainer import distributed, evaluate
from trainer.engines.base import Engine
from trainer.heads.dropout import dropout_keep
from trainer.keeper import Keeper
from trainer.nonfinite import NonFinite, diverged
from trainer.objectives.objective import Objective
from trainer.optim import Rates, set_rates
from trainer.reclustering import Reclustering, share_bad_images
from trainer.recorder import Recorder
from trainer.state import RunState
from trainer.stragglers import Stopwatch
from trainer.validators import Validator


@dataclass(frozen=True)
class LoopOptions:
    """The numbers of the loop; the names are those of the configuration."""

    seed: int
    epochs: int
    rates: Rates
    evaluate_every: int
    monitor: str
    min_delta: float
    checkpoint_every_steps: int | None
    on_nonfinite: str
    max_nonfinite: int
    verify_ranks_every: int
    stop_after_step: int | None = None


class Loop:
    """Train until the last epoch, or until asked to stop at a step boundary.

    Args:
        cluster: a cluster client (cluster/local.py or cluster/actors.py) connected for this rank.
        rule: how batches are drawn.
        transform: augmentation of the training images.
        should_stop: asked at every step boundary; any rank's yes stops all ranks together.
    """

    def __init__(
        self,
        options: LoopOptions,
        engine: Engine,
        objective: Objective,
        state: RunState,
        train: SplitReader,
        validator: Validator,
        transform: AugmentConfig,
        rule: order.BatchRule,
        cluster: ClusterClient,
        reclustering: Reclustering,
        keeper: Keeper,
        recorder: Recorder,
        num_workers: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.options, self.engine, self.objective, self.state = options, engine, objective, state
        self.train_split, self.validator, self.transform, self.rule = train, validator, transform, rule
        self.cluster, self.reclustering, self.keeper, self.recorder = cluster, reclustering, keeper, recorder
        self.num_workers, self.should_stop = num_workers, should_stop
        self.leader = distributed.rank() == 0

    def run(self) -> str:
        """Return "completed", or "preempted" when stopped with everything saved."""
        self.recorder.status("running", self.state)
        if self.state.step == 0:
            self._save()
        while self.state.epoch < self.options.epochs:
            with distributed.stage(f"epoch {self.state.epoch}"):
                if self.state.step_in_epoch == 0:
                    self.start_epoch()
                if not self.train_epoch():
                    self._save()
                    self.keeper.drain()
                    return "preempted"
                self.end_epoch()
        self.keeper.drain()
        self.keeper.check_complete()
        return "completed"

    def _save(self, best: bool = False) -> None:
        self.keeper.save(self.reclustering.tensors(), best)

    # -- start of an epoch

    def start_epoch(self) -> None:
        state = self.state
        plan = self._plan()
        state.phase, state.frozen, state.loss_sum, state.num_losses = plan.phase, plan.frozen, 0.0, 0
        state.saliency.reset()
        if plan.phase == "full":
            self.reclustering.forget()
            state.assignment = None
            return
        self.reclustering.adopt()
        if plan.recluster:
            self.reclustering.run(plan)

    def _plan(self) -> EpochPlan:
        told = self.cluster.plan(self.state.epoch).to_json() if self.leader else None
        plan = EpochPlan.from_json(distributed.broadcast_json(told))
        assert plan.widths == self.state.partition.widths, "the controller plans another partition than the ranks train"
        return plan

    # -- the steps of an epoch

    def train_epoch(self) -> bool:
        """Train what is left of the epoch; False when stopped before its end."""
        state = self.state
        labels = None if state.assignment is None else state.assignment.labels
        num_subspaces = 1 if state.assignment is None else state.assignment.num_subspaces
        batches = order.batches(
            self.options.seed, state.epoch, labels, self.train_split.labels, num_subspaces, self.rule
        )
        self.recorder.phase("training", len(batches))
        position = batch_slice(
            self.rule.batch_size, self.engine.num_pieces, distributed.rank(), distributed.world_size()
        )
        loader = train_loader(
            self.train_split,
            batches,
            self.transform,
            self.options.seed,
            state.epoch,
            views=self.objective.views,
            position=position,
            num_workers=self.num_workers,
            start_step=state.step_in_epoch,
            with_masks=self.objective.wants_masks,
            device=self.engine.device,
        )
        self.engine.model.train()
        watch = Stopwatch()
        began = time.monotonic()
        steps = range(state.step_in_epoch, len(batches))
        for batch, _ in zip(watch.fetched(loader), steps, strict=True):
            distributed.pat()
            stop = self._step(batch, batches, position, began)
            began = time.monotonic()
            if state.step % self.options.verify_ranks_every == 0:
                self.keeper.check_replicas()
            last = state.step_in_epoch == len(batches)
            every = self.options.checkpoint_every_steps
            if every and state.step % every == 0 and not last:
                with watch.paused():
                    self._save()
            if stop and not last:
                return False
        straggler = watch.straggler()
        if straggler is not None:
            self.recorder.event("straggler", state, **asdict(straggler))
        return True

    def _wishes_stop(self) -> bool:
        """Return whether this rank would stop after the step that is under way."""
        limit = self.options.stop_after_step
        return self.should_stop() or (limit is not None and self.state.step + 1 >= limit)

    def _step(self, batch: Batch, batches: Sequence[GlobalBatch], position: tuple[int, int], began: float) -> bool:
        """Take the next step of `batches`, of which this rank holds the rows of `position`; return whether a rank
        wishes to stop after it."""
        state, options, index = self.state, self.options, self.state.step_in_epoch
        factor = options.rates.factor(state.epoch + index / len(batches))
        rate = set_rates(self.engine.optimiser, factor, state.frozen)
        device = self.engine.device
        seen = self.objective.seen(batch.images, np.arange(*position), state.step)
        images = seen.contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(labels_of(batches, index, self.train_split.labels).astype(np.int64)).to(device)
        targets = self.objective.targets(batch, labels)
        subspace = batch.subspace if state.phase == "subspace" else None
        vectors = self.engine.embed(images, self._dropout(batch))
        fault, loss, stop, terms = None, 0.0, self._wishes_stop(), dict[str, torch.Tensor]()
        for update in self.objective.updates(vectors, targets, state.partition, subspace, state.step):
            self.engine.backward(update.loss, self.objective.parameters())
            outcome = self.engine.step(stop)
            if outcome.fault is None:
                self.objective.step(factor)
                gradient = vectors.grad if vectors.grad is not None else torch.zeros_like(vectors)
                state.saliency.update(vectors, gradient)
            fault, loss, stop = fault or outcome.fault, outcome.loss, outcome.stop
            terms |= update.terms
        state.step += 1
        state.step_in_epoch += 1
        if fault is not None:
            self._non_finite(fault, batches[index][1])
            return stop
        self.reclustering.note(lambda: rows_of(batches, index, *position))
        state.skipped_in_a_row = 0
        state.loss_sum += loss
        state.num_losses += 1
        speed = len(labels) / max(time.monotonic() - began, 1e-9)
        line: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "subspace": subspace, "loss": loss}
        if terms:
            line["terms"] = {name: float(term.detach()) for name, term in terms.items()}
        self.recorder.step({**line, "lr": rate, "images_per_s": round(speed, 1), "time": time.time()})
        return stop

    def _dropout(self, batch: Batch) -> torch.Tensor | None:
        head = self.engine.model.head
        if head.dropout == 0:
            return None
        ids = batch.sample_ids.numpy()
        keep = dropout_keep(self.options.seed, self.state.step, ids, head.num_features, head.dropout)
        return keep.to(self.engine.device, non_blocking=True)

    def _non_finite(self, cause: str, rows: np.ndarray) -> None:
        """Count a step that no rank has applied, or stop all ranks; `cause` is what was not finite."""
        with distributed.stage("agreement that a step is not finite"):
            distributed.barrier()  # a peer that is gone has sent rubbish: that must not end the run for good
        state, options = self.state, self.options
        ids = self.train_split.sample_ids[rows].tolist()
        said = f"{cause} not finite at step {state.step} (samples {ids[:8]}...)"
        safe = "; nothing of it was applied, and the newest checkpoint is from before it; lower optim.lr"
        if options.on_nonfinite == "stop":
            raise NonFinite(f"{said}{safe}, or set train.on_nonfinite=skip")
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        self.recorder.event("skipped", state, cause=cause, in_a_row=state.skipped_in_a_row, sample_ids=ids)
        if state.skipped_in_a_row >= options.max_nonfinite:
            raise NonFinite(f"{state.skipped_in_a_row} steps in a row were left out: {said}{safe}")

    # -- end of an epoch

    def end_epoch(self) -> None:
        state = self.state
        share_bad_images(self.train_split)
        scores = self._validate()
        change = self._report(scores)
        if isinstance(change, Growth):
            self._grow(change)
        elif isinstance(change, Rollback):
            self._roll_back(change)
        state.epoch += 1
        state.step_in_epoch = 0
        self._save(best=state.best["epoch"] == state.epoch - 1)

    def _validate(self) -> dict[str, Any] | None:
        state, options = self.state, self.options
        final = state.epoch + 1 == options.epochs
        if (state.epoch + 1) % options.evaluate_every and not final:
            return None
        self.recorder.phase("validation")
        with self.engine.averaged():
            found = self.validator(self.engine.model, state.partition)
        if found is None:
            raise NonFinite(diverged("the vectors of the validation split", state.step))
        return found

    def _report(self, scores: dict[str, Any] | None) -> Change | None:
        state = self.state
        line: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "time": time.time()}
        line["train"] = {"loss": state.loss_sum / max(state.num_losses, 1)}
        metrics: dict[str, Any] = {}
        if scores is not None:
            line["validation"] = scores
            monitored = evaluate.monitored(scores, self.options.monitor)
            metrics = {"score": monitored}
            # The controller's rule: an epoch that is best never ends with a split, so its checkpoint is whole.
            if state.best["score"] is None or monitored > state.best["score"] + self.options.min_delta:
                state.best = {"epoch": state.epoch, "score": monitored}
        self.recorder.epoch(line)
        change = None
        if self.leader:
            neurons = state.saliency.scores().tolist()
            change = self.cluster.report(state.epoch, metrics, neurons, state.partition.version)
        told = distributed.broadcast_json(change.to_json() if change is not None else None)
        return None if told is None else change_from_json(told)

    def _grow(self, growth: Growth) -> None:
        self.engine.permute_and_reset(list(growth.permutation), list(growth.reset_rows), growth.seed)
        self.objective.grow(growth)
        self.state.partition = self.state.partition.grow(tuple(growth.widths))
        self.recorder.event(
            "growth",
            self.state,
            widths=list(growth.widths),
            num_subspaces=len(growth.widths),
            decision_id=growth.decision_id,
            parent=growth.parent,
        )

    def _roll_back(self, rollback: Rollback) -> None:
        """Take a split back that did not pay."""
        self.reclustering.forget()
        self.keeper.roll_back(rollback)
        self.recorder.event(
            "rollback",
            self.state,
            widths=list(rollback.widths),
            num_subspaces=len(rollback.widths),
            decision_id=rollback.undoes,
            to_epoch=self.state.best["epoch"],
        )
