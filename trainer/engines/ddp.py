"""Whole weights and moments on every rank; gradients are summed in one of two ways.

Fast: torch's DistributedDataParallel, overlapped with backward. Deterministic: the gradients of the logical pieces are
added by a fixed tree (tree.py), each rank the subtrees of its own pieces and all of them the rest, so that the bytes
depend on the number of logical pieces only, never on the number of ranks.

Legend: P values of all parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from data_shards import keyed
from trainer import distributed
from trainer.averaging import WeightAverage
from trainer.engines import tree
from trainer.engines.base import Engine, Outcome, by_kind
from trainer.engines.scaling import unscale
from trainer.model import EmbeddingModel
from trainer.subspaces import surgery


class DDPEngine(Engine):
    """The engine without conditions: any precision, averaged weights, bitwise reproducible if asked.

    Args:
        model, pieces, cached, precision: as `Engine` says.
        make_optimiser: model -> torch optimiser.
        deterministic: reduce by the fixed tree instead of DistributedDataParallel.
        clip_norm: greatest gradient norm, or None.
        average_decay: decay of the running average of the weights; 0 keeps none.
        compiler: a backend of torch.compile for the training passes, or None.
    """

    optimiser: torch.optim.Optimizer

    def __init__(
        self,
        model: EmbeddingModel,
        make_optimiser: Callable[[EmbeddingModel], torch.optim.Optimizer],
        pieces: int | None = None,
        cached: bool = False,
        deterministic: bool = False,
        precision: str = "fp32",
        clip_norm: float | None = None,
        average_decay: float = 0.0,
        compiler: str | None = None,
    ) -> None:
        super().__init__(model, pieces, cached, precision)
        self.optimiser = make_optimiser(model)
        assert deterministic or len(set(map(len, self.runs))) == 1, "DistributedDataParallel needs equal ranks"
        assert cached or deterministic or len(self.own) == 1, "and takes several pieces one after another"
        self.deterministic, self.clip_norm = deterministic, clip_norm
        trained = model if compiler is None else cast(nn.Module, torch.compile(model, backend=compiler))
        self.network: nn.Module = trained if deterministic else distributed.data_parallel(trained)
        self.average = WeightAverage(model, average_decay) if average_decay else None

    def forward(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        network = self.network if torch.is_grad_enabled() else self.model
        with self.autocast():
            embedded = network(images, keep)
        return embedded.vectors.float(), embedded.features.detach()

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
        pieces = gradient.split(self._rows)
        with distributed.on_its_own(self.network):
            for inputs, piece in zip(self._inputs[:-1], pieces[:-1], strict=True):
                self.forward(*inputs)[0].backward(piece)
        self.forward(*self._inputs[-1])[0].backward(pieces[-1])

    def _backward_by_tree(self, gradient: Tensor) -> None:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        pieces = gradient.split(self._rows)

        def leaf(node: tree.Node) -> Tensor | None:
            if node[1] - node[0] > 1:
                return None
            i = node[0] - self.own.start
            graph = self.forward(*self._inputs[i])[0] if self.cached else self._outputs[i]
            return torch.cat([g.reshape(-1) for g in torch.autograd.grad(graph, parameters, pieces[i])])

        total = self._sum_over_ranks(leaf)
        for parameter, values in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = values.view(parameter.shape).clone(memory_format=torch.preserve_format)

    def _sum_over_ranks(self, leaf: Callable[[tree.Node], Tensor | None]) -> Tensor:
        """Return the sum (P,) over all pieces; `leaf` gives those of this rank, which are taken from left to right."""
        nodes = [tree.subtrees(0, self.num_pieces, run) for run in self.runs]
        own = torch.stack([tree.add_up(*node, leaf) for node in nodes[distributed.rank()]])
        sums = distributed.gather_runs(own, [len(held) for held in nodes])
        known = dict(zip(itertools.chain(*nodes), sums, strict=True))
        return tree.add_up(0, self.num_pieces, known.get)

    def step(self, stop: bool = False) -> Outcome:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if self.scale is not None:
            unscale(gradients, self.scale.value)
        norm = nn.utils.get_total_norm(gradients)  # not finite either when a square would not be
        verdict = self._agree(norm.isfinite(), stop)
        if verdict.fine:
            self._apply(norm)
        return self._outcome(verdict)

    def _apply(self, norm: Tensor) -> None:
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_norm, norm)
        self.optimiser.step()
        if self.average is not None:
            self.average.update()

    def _replicas(self) -> list[Tensor]:
        buffers = {f"model/{name}" for name, _ in self.model.named_buffers()}  # statistics of a rank's own rows
        return [value for name, value in self.tensors().items() if name not in buffers]

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def permute_and_reset(self, permutation: list[int], reset_rows: list[int], seed: int) -> None:
        rows = self.model.rows
        order = torch.tensor(permutation, device=self.device)
        for parameter in rows.values():
            with torch.no_grad():
                parameter.copy_(surgery.permute_rows(parameter, order))
            surgery.permute_and_reset_moments(self.optimiser.state.get(parameter, {}), order, reset_rows)
        weight, bias = rows["head.embedding.weight"], rows.get("head.embedding.bias")
        with torch.no_grad():
            surgery.reset_rows_xavier(weight, bias, reset_rows, keyed.generator(seed, "reset"))
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
            if entry == "step":  # fused kernels count on the device, others on the host
                fused = self.optimiser.param_groups[0].get("fused")
                value = value.to(parameter.device if fused else "cpu", copy=True)
            self.optimiser.state[parameter][entry] = value
