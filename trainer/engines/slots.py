"""Whole tensors in and out of where DeepSpeed keeps them.

A slot is one full-precision tensor of a parameter: its master weight (entry None) or a moment of the optimiser (entry
"exp_avg", ...). ZeRO keeps the slots of a parameter group flattened and cut into one part per rank. Reading and writing
are collectives, one parameter at a time, through DeepSpeed's safe_get / safe_set functions.

Two things have no function there: moments do not exist before the first step, so `start` lays them out where a
checkpoint brings them; and ZeRO-3 refuses a whole tensor whose size the ranks do not divide, so `ThirdStage` cuts
out this rank's part itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from trainer import distributed


class Slots(ABC):
    """The slots of one optimiser; `inner` is torch's."""

    inner: torch.optim.Optimizer

    @property
    @abstractmethod
    def parts(self) -> list[Tensor]:
        """The tensors that torch's optimiser steps on this rank."""

    @abstractmethod
    def read(self, parameter: nn.Parameter, entry: str | None = None) -> Tensor:
        """Return a slot whole."""

    @abstractmethod
    def write(self, parameter: nn.Parameter, value: Tensor, entry: str | None = None) -> None:
        """Set a slot from a whole tensor that every rank gives; weights reach the network with `publish`."""

    @abstractmethod
    def publish(self) -> None:
        """Have the network hold the written master weights."""

    def entries(self) -> list[str]:
        """Return the names of the moments that exist by now."""
        state = self.inner.state.get(self.parts[0], {})
        return [name for name, value in state.items() if isinstance(value, Tensor) and value.ndim]

    def scalars(self) -> dict[str, Tensor]:
        """Return what the optimiser counts per tensor ("step"); all tensors are stepped together."""
        state = self.inner.state.get(self.parts[0], {})
        return {name: torch.as_tensor(value) for name, value in state.items() if name not in self.entries()}

    def start(self, entries: list[str], scalars: dict[str, Tensor]) -> None:
        """Forget all moments, and lay out empty ones of these names."""
        self.inner.state.clear()
        for part in self.parts if entries else []:
            moments = {name: torch.zeros_like(part, requires_grad=False) for name in entries}
            self.inner.state[part] = {**{name: value.clone() for name, value in scalars.items()}, **moments}


class WholeSlots(Slots):
    """Stage 0: nothing is cut."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    @property
    def parts(self) -> list[Tensor]:
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]

    def _slot(self, parameter: nn.Parameter, entry: str | None) -> Tensor:
        found: Tensor = parameter if entry is None else self.inner.state[parameter][entry]
        return found.detach()

    def read(self, parameter: nn.Parameter, entry: str | None = None) -> Tensor:
        return self._slot(parameter, entry).clone()

    def write(self, parameter: nn.Parameter, value: Tensor, entry: str | None = None) -> None:
        self._slot(parameter, entry).copy_(value)

    def publish(self) -> None:
        """Nothing: the network's weights are the masters."""


class CutSlots(Slots):
    """Stages 1 and 2: masters and moments are cut, the network is whole."""

    def __init__(self, optimiser: Any) -> None:
        self.optimiser, self.inner = optimiser, optimiser.optimizer

    @property
    def parts(self) -> list[Tensor]:
        return list(self.optimiser.single_partition_of_fp32_groups)

    def read(self, parameter: nn.Parameter, entry: str | None = None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if entry is None:
            return safe_get_full_fp32_param(parameter)
        self._tie(parameter, entry)
        return safe_get_full_optimizer_state(parameter, entry)

    def write(self, parameter: nn.Parameter, value: Tensor, entry: str | None = None) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if entry is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            self._tie(parameter, entry)
            safe_set_full_optimizer_state(parameter, value, entry)

    def publish(self) -> None:
        self.optimiser.update_lp_params()

    def start(self, entries: list[str], scalars: dict[str, Tensor]) -> None:
        super().start(entries, scalars)
        self._tie_all()

    def _tie(self, parameter: nn.Parameter, entry: str) -> None:
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None and entry not in (mapping.optim_fragment or {}):
            self._tie_all()

    def _tie_all(self) -> None:
        """Tie parameters to their moments. DeepSpeed does so once: when its first group has stepped, and the others
        have no moments yet."""
        self.optimiser._hp_optimizer_states_linked = False
        self.optimiser._lazy_init_hp_params_optimizer_state()


class ThirdStage(CutSlots):
    """Stage 3: the network is cut as well."""

    @property
    def parts(self) -> list[Tensor]:
        return list(self.optimiser.fp32_partitioned_groups_flat)

    def write(self, parameter: nn.Parameter, value: Tensor, entry: str | None = None) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        part = _own_part(value, parameter.ds_tensor.numel())  # type: ignore[attr-defined]
        if entry is not None:
            safe_set_local_optimizer_state(parameter, part, entry)
            return
        safe_set_local_fp32_param(parameter, part)
        with GatheredParameters([parameter], modifier_rank=0):
            if distributed.rank() == 0:
                parameter.data.copy_(value)

    def publish(self) -> None:
        """Nothing: `write` reaches the network, one parameter at a time."""

    def start(self, entries: list[str], scalars: dict[str, Tensor]) -> None:
        Slots.start(self, entries, scalars)


def _own_part(value: Tensor, size: int) -> Tensor:
    """Return this rank's part of a flattened tensor; the last ranks' parts are filled up with zeros."""
    part = value.flatten()[size * distributed.rank() :][:size]
    return torch.cat([part, part.new_zeros(size - part.numel())])
