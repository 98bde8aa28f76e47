"""Whole weights and moments on every rank; gradients are summed in one of two ways.

Fast: torch's DistributedDataParallel, overlapped with backward. Deterministic: every logical piece's gradient is
gathered and added by a fixed pairwise tree, so that the bytes depend on the number of logical pieces only, never on
the number of ranks.

Legend: L pieces of all ranks, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from data_shards import keyed
from trainer import distributed
from trainer.averaging import WeightAverage
from trainer.engines.base import Engine, by_kind
from trainer.engines.scaling import unscale
from trainer.model import EmbeddingModel
from trainer.subspaces import surgery


def pairwise_sum(rows: Tensor) -> Tensor:
    """Return the sum over dimension 0 by a fixed binary tree: (L, P) -> (P,)."""
    while len(rows) > 1:
        paired = rows[: len(rows) // 2 * 2]
        summed = paired[0::2] + paired[1::2]
        rows = torch.cat([summed, rows[len(paired) :]])
    return rows[0]


class DDPEngine(Engine):
    """The engine without conditions: any precision, averaged weights, bitwise reproducible if asked.

    Args:
        model, pieces, cached, precision: as `Engine` says.
        make_optimiser: model -> torch optimiser.
        deterministic: reduce by the fixed tree instead of DistributedDataParallel.
        clip_norm: greatest gradient norm, or None.
        average_decay: decay of the running average of the weights; 0 keeps none.
    """

    optimiser: torch.optim.Optimizer

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
        super().__init__(model, pieces, cached, precision)
        self.optimiser = make_optimiser(model)
        assert cached or deterministic or pieces == 1, "DistributedDataParallel takes several pieces one after another"
        self.deterministic, self.clip_norm = deterministic, clip_norm
        self.network: nn.Module = model if deterministic else distributed.data_parallel(model)
        self.average = WeightAverage(model, average_decay) if average_decay else None

    def forward(self, images: Tensor, keep: Tensor | None) -> Tensor:
        network = self.network if torch.is_grad_enabled() else self.model
        with self.autocast():
            vectors: Tensor = network(images, keep).vectors
        return vectors.float()

    def _send_back(self, gradient: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if self.scale is not None:
            gradient = gradient * self.scale.value
        if self.deterministic:
            self._backward_by_tree(gradient)
        else:
            self._backward_by_ddp(gradient * distributed.world_size())  # DDP averages where we want the sum

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

    def step(self) -> bool:
        if self.scale is not None:
            finite = unscale(self.model.parameters(), self.scale.value)
            fine = self.scale.update(finite)
            if not finite:
                return fine
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimiser.step()
        if self.average is not None:
            self.average.update()
        return True

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def permute_and_reset(self, permutation: list[int], reset_rows: list[int], seed: int) -> None:
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
        named = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for entry, value in self.optimiser.state.get(parameter, {}).items():
                named[f"optim/{name}/{entry}"] = torch.as_tensor(value)
        if self.average is not None:
            named.update({f"average/{name}": value for name, value in self.average.tensors().items()})
        if self.scale is not None:
            named.update({f"scale/{name}": value for name, value in self.scale.tensors().items()})
        return named

    def load_tensors(self, named: dict[str, Tensor]) -> None:
        parts = by_kind(named)
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.load_tensors(parts["average"])
        if self.scale is not None:
            self.scale.load_tensors(parts["scale"])
        self.optimiser.state.clear()
        parameters = dict(self.model.named_parameters())
        for name, value in parts["optim"].items():
            parameter_name, _, entry = name.rpartition("/")
            parameter = parameters[parameter_name]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            self.optimiser.state[parameter][entry] = value.clone() if entry == "step" else value
