"""Forward, gather, loss of the global batch, backward, step: W ranks compute what one rank would.

A step goes in two halves. `embed` runs the network on this rank's pieces of the batch and gathers the vectors of all
pieces in canonical order into one leaf; the objective takes its loss of that leaf, the same number on every rank.
`backward` asks the loss for the gradient of the leaf and sends each piece its rows. So mining and losses see the
global batch, and accumulation (several pieces per rank), gradient caching (forward again before a piece's backward,
Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
https://arxiv.org/abs/2101.06983) and many ranks are one mechanism.

Gradients of the pieces are summed in one of two ways. Fast: torch's DistributedDataParallel, overlapped with backward.
Deterministic: every logical piece's gradient is gathered and added by a fixed pairwise tree, so that the bytes depend
on the number of logical pieces only, never on the number of ranks.

Legend: B global batch, n rows of this rank, L pieces of all ranks, W ranks, D embedding width, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from data_shards import keyed
from trainer import distributed
from trainer.averaging import WeightAverage
from trainer.model import EmbeddingModel
from trainer.subspaces import surgery


def pairwise_sum(rows: Tensor) -> Tensor:
    """Return the sum over dimension 0 by a fixed binary tree: (L, P) -> (P,)."""
    while len(rows) > 1:
        paired = rows[: len(rows) // 2 * 2]
        summed = paired[0::2] + paired[1::2]
        rows = torch.cat([summed, rows[len(paired) :]])
    return rows[0]


class DDPEngine:
    """Owns the network, its optimiser and how gradients are reduced.

    Args:
        model: an EmbeddingModel on its device.
        make_optimiser: model -> torch optimiser.
        pieces: forward passes this rank splits its rows into.
        cached: forward again before the backward of a piece, so that only one piece's graph is in memory.
        deterministic: reduce by the fixed tree instead of DistributedDataParallel.
        precision: "fp32" or "bf16" (autocast of the network alone; vectors and losses are float32).
        clip_norm: greatest gradient norm, or None.
        average_decay: decay of the running average of the weights; 0 keeps none.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        make_optimiser: Callable[[EmbeddingModel], torch.optim.Optimizer],
        pieces: int = 1,
        cached: bool = False,
        deterministic: bool = False,
        precision: str = "fp32",
        clip_norm: float | None = None,
        average_decay: float = 0.0,
    ) -> None:
        self.model = model
        self.optimiser = make_optimiser(model)
        assert cached or deterministic or pieces == 1, "DistributedDataParallel takes several pieces one after another"
        self.pieces, self.cached, self.deterministic, self.clip_norm = pieces, cached, deterministic, clip_norm
        self.bf16 = precision == "bf16"
        self.network: nn.Module = model if deterministic else distributed.data_parallel(model)
        self.device = next(model.parameters()).device
        self.average = WeightAverage(model, average_decay) if average_decay else None
        self._inputs: list[tuple[Tensor, Tensor | None]] = []
        self._outputs: list[Tensor] = []
        self._leaf: Tensor | None = None

    def forward(self, images: Tensor, keep: Tensor | None, network: nn.Module | None = None) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            vectors = (network or self.network)(images, keep).vectors
        return vectors.float()

    def embed(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """Return the vectors (B, D) of the global batch, a leaf that wants a gradient, from this rank's images."""
        rows = images.shape[0] // self.pieces
        keeps = keep.split(rows) if keep is not None else [None] * self.pieces
        self._inputs = list(zip(images.split(rows), keeps, strict=True))
        with torch.set_grad_enabled(not self.cached):
            network = self.model if self.cached else self.network
            self._outputs = [self.forward(*piece, network=network) for piece in self._inputs]
        local = torch.cat([output.detach() for output in self._outputs])
        with distributed.stage("gather of the vectors"):
            self._leaf = distributed.gather_rows(local).requires_grad_()
        return self._leaf

    def backward(self, loss: Tensor) -> bool:
        """Leave the gradient of the global loss on every parameter; False when it or the loss is not finite."""
        assert self._leaf is not None
        loss.backward()
        gradient = self._leaf.grad
        if gradient is None:
            gradient = torch.zeros_like(self._leaf)
        if not bool(torch.isfinite(loss) & torch.isfinite(gradient).all()):
            return False
        self.optimiser.zero_grad(set_to_none=True)
        local = gradient.view(distributed.world_size(), -1, gradient.shape[1])[distributed.rank()]
        with distributed.stage("sum of the gradients"):
            if self.deterministic:
                self._backward_by_tree(local)
            else:
                self._backward_by_ddp(local * distributed.world_size())  # DDP averages where we want the sum
        return True

    def _backward_by_ddp(self, gradient: Tensor) -> None:
        if not self.cached:
            self._outputs[0].backward(gradient)
            return
        pieces = gradient.split(gradient.shape[0] // self.pieces)
        with self.network.no_sync():  # type: ignore[operator]
            for inputs, piece in zip(self._inputs[:-1], pieces[:-1], strict=True):
                self.forward(*inputs).backward(piece)
        self.forward(*self._inputs[-1]).backward(pieces[-1])

    def _backward_by_tree(self, gradient: Tensor) -> None:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        flat = []
        for inputs, output, piece in zip(
            self._inputs, self._outputs, gradient.split(gradient.shape[0] // self.pieces), strict=True
        ):
            graph = self.forward(*inputs) if self.cached else output
            gradients = torch.autograd.grad(graph, parameters, piece)
            flat.append(torch.cat([g.reshape(-1) for g in gradients]))
        total = pairwise_sum(distributed.gather_rows(torch.stack(flat)))
        for parameter, values in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = values.view(parameter.shape).clone(memory_format=torch.preserve_format)

    def step(self) -> None:
        """Apply the gradients."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimiser.step()
        if self.average is not None:
            self.average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """Have the network hold the averaged weights for a while, if there are any: for everything but training."""
        return nullcontext() if self.average is None else self.average.applied()

    def permute_and_reset(self, permutation: list[int], reset_rows: list[int], seed: int) -> None:
        """Move the embedding's rows and their moments; give `reset_rows` fresh weights and no moments.

        Row i of the result is row permutation[i] of before. Weights and biases, and both Adam moments, move alike.
        """
        rows = self.model.rows
        order = torch.tensor(permutation, device=self.device)
        for parameter in rows.values():
            with torch.no_grad():
                parameter.copy_(surgery.permute_rows(parameter, order))
            surgery.permute_and_reset_moments(self.optimiser.state.get(parameter, {}), order, reset_rows)
        embedding = self.model.head.embedding
        with torch.no_grad():
            surgery.reset_rows_xavier(embedding.weight, embedding.bias, reset_rows, keyed.generator(seed, "reset"))
        if self.average is not None:
            self.average.permute_and_reset(list(rows), order, reset_rows)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, buffers, moments and average by name: `model/NAME`, `optim/NAME/KEY`, `average/NAME`."""
        named = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for entry, value in self.optimiser.state.get(parameter, {}).items():
                named[f"optim/{name}/{entry}"] = torch.as_tensor(value)
        if self.average is not None:
            named.update({f"average/{name}": value for name, value in self.average.tensors().items()})
        return named

    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        parts = {"model": {}, "optim": {}, "average": {}}  # type: dict[str, dict[str, Tensor]]
        for name, value in named.items():
            kind, _, rest = name.partition("/")
            if kind in parts:
                parts[kind][rest] = value
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_tensors(parts["average"])
        self.optimiser.state.clear()
        parameters = dict(self.model.named_parameters())
        for name, value in parts["optim"].items():
            parameter_name, _, entry = name.rpartition("/")
            parameter = parameters[parameter_name]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            self.optimiser.state[parameter][entry] = value.clone() if entry == "step" else value
