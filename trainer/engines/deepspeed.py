"""Weights, gradients and moments spread over the ranks by DeepSpeed's ZeRO.

Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models",
https://arxiv.org/abs/1910.02054. Stage 1 cuts moments and full-precision masters, 2 also gradients, 3 also the
weights; 0 cuts nothing.

The mathematics are those of DDPEngine: the optimiser is torch's own, precision is autocast over float32 weights, the
loss is that of the global batch. So checkpoints go from one engine to the other and back.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import keyed
from data_shards.errors import UserError
from trainer import distributed
from trainer.engines import finite
from trainer.engines.base import Engine, Outcome, by_kind
from trainer.engines.scaling import unscale
from trainer.engines.slots import CutSlots, Slots, ThirdStage, WholeSlots
from trainer.model import EmbeddingModel, count_parameters
from trainer.subspaces import surgery

GREATEST_BUCKET = 50_000_000


def check_zero(zero_stage: int = 1, offload: bool = False, persistence_threshold: int = 100_000) -> None:
    """Raise UserError for options that DeepSpeed cannot take."""
    if zero_stage not in (0, 1, 2, 3):
        raise UserError(f"train.engine.zero_stage: there are stages 0, 1, 2 and 3, got {zero_stage!r}")
    if not isinstance(offload, bool):
        raise UserError(f"train.engine.offload is true or false, got {offload!r}")
    if offload and zero_stage == 0:
        raise UserError("train.engine.offload needs train.engine.zero_stage 1, 2 or 3: stage 0 has nothing to offload")
    if not isinstance(persistence_threshold, int) or persistence_threshold < 0:
        raise UserError(f"train.engine.persistence_threshold is a number of values, got {persistence_threshold!r}")


class DeepSpeedEngine(Engine):
    """The engine for networks whose training state does not fit on one device.

    Args:
        model, pieces, cached, precision: as `Engine` says. Weights become contiguous: ZeRO flattens them.
        make_optimiser: model -> torch optimiser.
        clip_norm: greatest gradient norm, or None.
        timeout_s: deadline of DeepSpeed's own collectives.
        zero_stage: 0, 1, 2 or 3.
        offload: keep masters and moments in the memory of the host, and step there.
        persistence_threshold: stage 3 keeps smaller parameters whole; fetching them would cost more than they take.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        make_optimiser: Callable[[EmbeddingModel], torch.optim.Optimizer],
        pieces: int | None = None,
        cached: bool = False,
        precision: str = "fp32",
        clip_norm: float | None = None,
        timeout_s: float = 600.0,
        zero_stage: int = 1,
        offload: bool = False,
        persistence_threshold: int = 100_000,
    ) -> None:
        check_zero(zero_stage, offload, persistence_threshold)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        super().__init__(model, pieces, cached, precision)
        assert len(set(map(len, self.runs))) == 1, "DeepSpeed needs equal ranks"
        assert cached or len(self.own) == 1, "several graphs at once are not kept: pieces are cached"
        self.zero_stage = zero_stage
        self.trained = copy.deepcopy(model) if zero_stage == 3 else model
        deepspeed = _library(timeout_s)
        bucket = min(GREATEST_BUCKET, count_parameters(self.trained))  # DeepSpeed's 500 million are 2 GB per step
        zero: dict[str, Any] = {
            "stage": zero_stage,
            "reduce_bucket_size": bucket,
            "stage3_param_persistence_threshold": persistence_threshold,
            **({"offload_optimizer": {"device": "cpu"}} if offload else {}),
        }
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # only DeepSpeed's own speed display would read it
            "gradient_accumulation_steps": len(self.own),
            "gradient_clipping": clip_norm or 0.0,
            "steps_per_print": None,
            "zero_optimization": zero,
            # torch's optimisers, also on the host: DeepSpeed's own would be compiled at the first run.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        network = _Vectors(self.trained, self.autocast)
        made = make_optimiser(self.trained)
        self._engine, self.optimiser, _, _ = deepspeed.initialize(model=network, optimizer=made, config=settings)
        kinds: dict[int, Callable[[Any], Slots]] = {0: WholeSlots, 1: CutSlots, 2: CutSlots, 3: ThirdStage}
        self.slots = kinds[zero_stage](self.optimiser)
        if zero_stage == 3:
            self._empty()

    def forward(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        with distributed.stage("fetch of the weights"):  # by stage 3
            vectors, features = self._engine(images, keep)
        return vectors, features

    def _send_back(self, gradient: Tensor) -> None:
        gradient = gradient * distributed.world_size()  # DeepSpeed averages where we want the sum
        if self.scale is not None and self.zero_stage == 0:
            gradient = gradient * self.scale.value
        elif self.scale is not None:
            self.optimiser.override_loss_scale(self.scale.value)  # type: ignore[attr-defined]
        pieces = gradient.split(self._rows)
        for i, (inputs, piece) in enumerate(zip(self._inputs, pieces, strict=True)):
            output = self.forward(*inputs)[0] if self.cached else self._outputs[i]
            self._engine.set_gradient_accumulation_boundary(i == len(self.own) - 1)
            # DeepSpeed starts from a scalar; the derivative of this one by the vectors is `piece`.
            self._engine.backward((output * piece).sum(), scale_wrt_gas=False)

    def step(self, stop: bool = False) -> Outcome:
        return self._outcome(self._step_whole(stop) if self.zero_stage == 0 else self._step_parts(stop))

    def _step_whole(self, stop: bool) -> finite.Verdict:
        """Step where every rank has all gradients, at which DeepSpeed itself takes no look."""
        gradients = [parameter.grad for parameter in self.trained.parameters() if parameter.grad is not None]
        if self.scale is not None:
            unscale(gradients, self.scale.value)
        verdict = self._agree(nn.utils.get_total_norm(gradients).isfinite(), stop)
        if verdict.fine:
            self._engine.step()
        else:
            self._engine.zero_grad()
        return verdict

    def _step_parts(self, stop: bool) -> finite.Verdict:
        """Step where the ranks have parts: DeepSpeed unscales, looks, and has the ranks agree."""
        with distributed.stage("step of the optimiser"):
            self._engine.step()
        return self._agree(torch.tensor(bool(self._engine.was_step_applied()), device=self.device), stop)

    def _replicas(self) -> list[Tensor]:
        if self.zero_stage == 3:
            return []
        moments: list[Tensor] = []
        if self.zero_stage == 0:
            entries = self.slots.entries()
            moments = [self.slots.read(p, entry) for p in self.trained.parameters() for entry in entries]
        return [*self.trained.parameters(), *moments]

    # -- whole tensors

    def averaged(self) -> AbstractContextManager[None]:
        return self._filled() if self.zero_stage == 3 else nullcontext()

    @contextmanager
    def _filled(self) -> Iterator[None]:
        with distributed.stage("gather of the weights"):
            for whole, parameter in zip(self.model.parameters(), self.trained.parameters(), strict=True):
                whole.data = self.slots.read(parameter)
            for buffer, own in zip(self.model.buffers(), self.trained.buffers(), strict=True):
                buffer.copy_(own)
        try:
            yield
        finally:
            self._empty()

    def _empty(self) -> None:
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)

    def permute_and_reset(self, permutation: list[int], reset_rows: list[int], seed: int) -> None:
        order = torch.tensor(permutation, device=self.device)
        parameters = self.trained.rows
        values = {name: surgery.permute_rows(self.slots.read(row), order) for name, row in parameters.items()}
        weight, bias = values["head.embedding.weight"], values.get("head.embedding.bias")
        surgery.reset_rows_xavier(weight, bias, reset_rows, keyed.generator(seed, "reset"))
        for name, parameter in parameters.items():
            moments = {entry: self.slots.read(parameter, entry) for entry in self.slots.entries()}
            surgery.permute_and_reset_moments(moments, order, reset_rows)
            self.slots.write(parameter, values[name])
            for entry, value in moments.items():
                self.slots.write(parameter, value, entry)
        self.slots.publish()

    def tensors(self) -> dict[str, Tensor]:
        named = {f"model/{name}": value for name, value in self.trained.named_buffers()}
        entries, scalars = self.slots.entries(), self.slots.scalars()
        for name, parameter in self.trained.named_parameters():
            self._collect(named, f"model/{name}", parameter)
            for entry in entries:
                self._collect(named, f"optim/{name}/{entry}", parameter, entry)
            named.update({f"optim/{name}/{entry}": value.clone() for entry, value in scalars.items()})
        if self.scale is not None:
            named.update({f"scale/{name}": value for name, value in self.scale.tensors().items()})
        return named

    def _collect(self, named: dict[str, Tensor], name: str, parameter: nn.Parameter, entry: str | None = None) -> None:
        value = self.slots.read(parameter, entry)  # on every rank, but kept by one, in the host's memory
        if distributed.rank() == 0:
            named[name] = value.cpu()

    @torch.no_grad()
    def load_tensors(self, named: dict[str, Tensor]) -> None:
        parts = by_kind(named)
        for name, value in self.trained.named_buffers():
            value.copy_(parts["model"][name])
        if self.scale is not None:
            self.scale.load_tensors(parts["scale"])
        any_entry = {name.rpartition("/")[2]: value for name, value in parts["optim"].items()}
        scalars = {entry: value for entry, value in any_entry.items() if not value.ndim}
        entries = [entry for entry in any_entry if entry not in scalars]
        self.slots.start(entries, scalars)
        for name, parameter in self.trained.named_parameters():
            self.slots.write(parameter, parts["model"][name])
            for entry in entries:
                self.slots.write(parameter, parts["optim"][f"{name}/{entry}"], entry)
        self.slots.publish()


class _Vectors(nn.Module):
    """What DeepSpeed wraps: the network in its precision, and of its results the float32 vectors alone."""

    def __init__(self, network: EmbeddingModel, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.network, self.autocast = network, autocast

    def forward(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        with self.autocast():
            embedded = self.network(images, keep)
        return embedded.vectors.float(), embedded.features.detach()  # stage 3 counts the outputs that want a gradient


def _library(timeout_s: float) -> Any:
    """Import DeepSpeed: quiet, with our deadline, and without what it would compile at run time."""
    import deepspeed
    from deepspeed.utils import groups

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # What could be compiled. Asking runs a compiler, and on CPUs an operation for inference would follow (167 s).
    deepspeed.ops.__compatible_ops__ = {}
    groups._WORLD_GROUP = distributed.another_group(timeout_s)  # its own would wait for half an hour
    return deepspeed
