"""What every engine is to the loop, and the half of a step that they share.

A step goes in two halves. `embed` runs the network on this rank's pieces of the batch and gathers the vectors of all
pieces in canonical order into one leaf; the objective takes its loss of that leaf, the same number on every rank.
`backward` asks the loss for the gradient of the leaf and sends each piece its rows. So mining and losses see the
global batch, and accumulation (several pieces per rank), gradient caching (forward again before a piece's backward,
Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
https://arxiv.org/abs/2101.06983) and many ranks are one mechanism. Engines differ in how the gradients of the pieces
are summed and where weights and moments live.

Nothing that is not finite is applied: `step` has the ranks agree first, and says what it was (finite.py).

Legend: B global batch, n rows of this rank, L pieces of all ranks, W ranks, D embedding width, P parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_shards.samplers import shares
from trainer import distributed
from trainer.engines import finite, replicas
from trainer.engines.scaling import LossScale
from trainer.model import EmbeddingModel
from trainer.optim import RateHolder

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = ("model", "optim", "average", "scale")


@dataclass(frozen=True)
class Outcome:
    """How a step ended: what was not finite, so that it was not applied (None: nothing); its loss; and whether a rank
    wishes to stop."""

    fault: str | None
    loss: float
    stop: bool


class Engine(ABC):
    """Owns the network, its optimiser and how gradients are reduced.

    `model` is for looking at: inside `averaged()` it is whole on every rank, outside it may be empty (ZeRO-3).

    Args:
        model: an EmbeddingModel on its device.
        pieces: equal parts that the ranks together split a batch into, one forward pass each; ranks hold contiguous
            runs of them, whose lengths differ by one at most. One per rank when not given.
        cached: forward again before the backward of a piece, so that only one piece's graph is in memory.
        precision: "fp32", "bf16" or "fp16" (autocast of the network alone; weights, vectors and losses are float32).
    """

    optimiser: RateHolder

    def __init__(self, model: EmbeddingModel, pieces: int | None, cached: bool, precision: str) -> None:
        self.model = model
        world = distributed.world_size()
        self.num_pieces, self.cached = pieces or world, cached
        self.runs = [shares(self.num_pieces, rank, world) for rank in range(world)]
        self.own = self.runs[distributed.rank()]
        assert all(self.runs), "fewer pieces than ranks"
        self.dtype = PRECISIONS[precision]
        self.device = next(model.parameters()).device
        self.scale = LossScale() if precision == "fp16" else None
        self._inputs: list[tuple[Tensor, Tensor | None]] = []
        self._outputs: list[Tensor] = []
        self._leaf: Tensor | None = None
        self._rows = 0  # of a piece
        self._vectors_fine = self._loss_fine = torch.tensor(True)
        self._loss = torch.zeros(())
        self.features = torch.zeros(0)  # (n, F) of this rank's images in the last `embed`

    @property
    def counts(self) -> list[int]:
        """How many rows of the batch each rank holds."""
        return [len(run) * self._rows for run in self.runs]

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute the network in its precision."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if lower else torch.bfloat16, enabled=lower)

    @abstractmethod
    def forward(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return float32 vectors of some of this rank's images, with a graph unless gradients are switched off, and
        their pooled features, without."""

    def embed(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """Return the vectors (B, D) of the global batch, a leaf that wants a gradient, from this rank's images.

        Values that are not finite are zero in it, so that no miner trips over them: `step` will not be applied.
        """
        self._rows = images.shape[0] // len(self.own)
        keeps = keep.split(self._rows) if keep is not None else [None] * len(self.own)
        self._inputs = list(zip(images.split(self._rows), keeps, strict=True))
        with torch.set_grad_enabled(not self.cached):
            outputs = [self.forward(*piece) for piece in self._inputs]
        self._outputs = [vectors for vectors, _ in outputs]
        self.features = torch.cat([features for _, features in outputs])
        local = torch.cat([output.detach() for output in self._outputs])
        self._vectors_fine = local.isfinite().all()
        with distributed.stage("gather of the vectors"):
            whole = distributed.gather_runs(local, self.counts)
        self._leaf = torch.where(whole.isfinite(), whole, 0.0).requires_grad_()
        return self._leaf

    def backward(self, loss: Tensor, beside: Sequence[Tensor] = ()) -> None:
        """Leave the gradient of the global loss on every parameter, or NaN when this rank saw what is not finite.

        `beside` are parameters of the loss itself: theirs must be finite too.
        """
        assert self._leaf is not None
        loss.backward()
        self._loss = loss.detach()
        gradient = self._leaf.grad
        if gradient is None:
            gradient = torch.zeros_like(self._leaf)
        self._loss_fine = self._loss.isfinite() & gradient.isfinite().all()
        for parameter in beside:
            if parameter.grad is not None:
                self._loss_fine &= parameter.grad.isfinite().all()
        local = gradient[self.own.start * self._rows : self.own.stop * self._rows]
        # No look at the flags here: that would wait for the device. NaN reaches all ranks with the sum.
        local = torch.where(self._vectors_fine & self._loss_fine, local, torch.nan)
        with distributed.stage("sum of the gradients"):
            self._send_back(local)

    def _agree(self, gradients_fine: Tensor, stop: bool) -> finite.Verdict:
        """Return what the ranks together say of this step."""
        return finite.agree(self._vectors_fine, self._loss_fine, gradients_fine, self._loss, stop)

    def _outcome(self, verdict: finite.Verdict) -> Outcome:
        """Return what `step` returns; the loss scale learns what it is to blame for."""
        fine = verdict.fine
        if self.scale is not None and (verdict.fine or verdict.overflow):
            fine = self.scale.update(verdict.fine)
        return Outcome(None if fine else verdict.cause, verdict.loss, verdict.stop)

    @abstractmethod
    def _send_back(self, gradient: Tensor) -> None:
        """Take this rank's rows (n, D) of the leaf's gradient back through the network, and add up over the ranks."""

    @abstractmethod
    def step(self, stop: bool = False) -> Outcome:
        """Apply the gradients; when something was not finite apply nothing, on no rank, and say what it was.

        With fp16 a step that is left out to lower the loss scale is part of the method: no fault. `stop` is this rank's
        wish, told to all without another wait.
        """

    def check_replicas(self, step: int, beside: Sequence[Tensor] = ()) -> None:
        """Compare what every rank should hold alike, `beside` too; all ranks ask together. `step` is for the message.

        Raises:
            ReplicasDiffer: a rank's weights or moments are not those of the others.
        """
        held = [*self._replicas(), *beside]
        if held and distributed.world_size() > 1:
            with distributed.stage("comparison of the ranks"):
                sums = distributed.gather_rows(replicas.bit_sum(held, self.device)[None]).tolist()
            replicas.check(sums, step)

    @abstractmethod
    def _replicas(self) -> list[Tensor]:
        """Return the tensors that every rank holds alike, in one order; none where everything is spread."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Have `model` hold, for a while, the weights that everything but training sees. Every rank enters."""

    @abstractmethod
    def permute_and_reset(self, permutation: list[int], reset_rows: list[int], seed: int) -> None:
        """Move the embedding's rows and their moments; give `reset_rows` fresh weights and no moments.

        Row i of the result is row permutation[i] of before. Weights and biases, and both Adam moments, move alike.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name, in full precision and full size: `model/NAME`, `optim/NAME/KEY`, `average/NAME`.

        Names and shapes are those of every other engine. All ranks ask together; only rank 0 is sure to get it all.
        """

    @abstractmethod
    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Take back what any engine's `tensors` gave, the same on every rank."""


def by_kind(named: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the engine's own tensors as {kind: {rest of the name: tensor}}."""
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
    for name, value in named.items():
        kind, _, rest = name.partition("/")
        if kind in parts:
            parts[kind][rest] = value
    return parts
