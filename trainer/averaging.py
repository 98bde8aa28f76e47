"""A running average of the weights, which is what evaluation and clustering see when it is switched on.

Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging", https://doi.org/10.1137/0330046,
in its exponential form. On small data sets the last step is a noisy place to stop; the average of the last few hundred
is not. Elementwise, so it depends on no rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer.subspaces import surgery


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights after every step, with a smaller decay at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.num_steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take a step's weights in."""
        self.num_steps += 1
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        for name, value in self.values.items():
            value.lerp_(self.parameters[name], 1 - decay)

    @torch.no_grad()
    def permute_and_reset(self, names: Sequence[str], order: Tensor, reset_rows: Sequence[int]) -> None:
        """Follow a growth: rows of the named parameters move, `reset_rows` start at the new weights."""
        for name in names:
            value = surgery.permute_rows(self.values[name], order)
            value[list(reset_rows)] = self.parameters[name][list(reset_rows)]
            self.values[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the network hold the average for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.values.items():
            held = self.parameters[name].detach().clone()
            self.parameters[name].copy_(value)
            value.copy_(held)

    def tensors(self) -> dict[str, Tensor]:
        """Return the average by name, and the number of steps in it."""
        return {**self.values, "num_steps": torch.tensor(self.num_steps)}

    @torch.no_grad()
    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self.num_steps = int(named["num_steps"])
        for name, value in self.values.items():
            value.copy_(named[name])
