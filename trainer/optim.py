"""Parameter groups, the optimisers by name, and learning rates as a pure function of progress.

A rate depends on how far the run is (epochs and a fraction), never on a scheduler's own state: resume needs nothing,
and epochs may have any number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from trainer.model import EmbeddingModel


def parameter_groups(model: EmbeddingModel, lr: float, embedding_lr: float | None) -> list[dict[str, Any]]:
    """Return two groups, everything but the embedding layer and that layer, as published (one Adam, two groups).

    A head without such a layer leaves the second one out.
    """
    embedding = list(model.head.embedding.parameters())
    own = {id(p) for p in embedding}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups = [(rest, lr), (embedding, embedding_lr or lr)]
    return [{"params": params, "lr": rate, "base_lr": rate} for params, rate in groups if params]


# The arguments beside `groups` are weight_decay, momentum and nesterov for sgd, and `fused` or `foreach`.
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups, momentum=0.9, nesterov=True, **others: torch.optim.SGD(
        groups, momentum=momentum, nesterov=nesterov and momentum > 0, **others
    ),
}


class RateHolder(Protocol):
    """An optimiser as far as learning rates go: torch's own, or one that DeepSpeed wrapped."""

    param_groups: list[dict[str, Any]]


@dataclass(frozen=True)
class Rates:
    """The factor on the base learning rate: "constant", "cosine" to zero, or "step": times decay at each milestone."""

    schedule: Literal["constant", "cosine", "step"]
    num_epochs: int
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    decay: float = 0.1

    def factor(self, progress: float) -> float:
        """Return it after `progress` epochs (a float in [0, num_epochs])."""
        if progress < self.warmup_epochs:
            return (progress + 1e-3) / (self.warmup_epochs + 1e-3)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "step":
            return float(self.decay ** sum(progress >= milestone for milestone in self.milestones))
        share = (progress - self.warmup_epochs) / max(self.num_epochs - self.warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def set_rates(optimiser: RateHolder, factor: float, frozen: bool = False) -> float:
    """Set every group's rate to its base rate times `factor`, the first one's to 0 if `frozen`; return the first."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    if frozen:
        optimiser.param_groups[0]["lr"] = 0.0
    return float(optimiser.param_groups[0]["lr"])
