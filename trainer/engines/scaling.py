"""Loss scaling for float16: small gradients would be flushed to zero, so all are computed times a power of two.

Micikevicius et al. 2018, "Mixed precision training", https://arxiv.org/abs/1710.03740, with the constants of
torch.amp.GradScaler. Ours because it has to act on the gradient of the gathered leaf, live in the checkpoint, and be
the same number on every rank and in every engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROWTH_INTERVAL = 2000  # steps without an overflow after which the scale is doubled


class LossScale:
    """A power of two that is halved when a gradient overflows and doubled after a long time without."""

    def __init__(self) -> None:
        self.value, self.good_steps = 2.0**16, 0

    def update(self, finite: bool) -> bool:
        """Learn how a step went; False when it is not the scale's fault, which cannot get any smaller."""
        if not finite:
            self.value, self.good_steps = self.value / 2, 0
            if self.value < 1:
                self.value = 1.0
                return False
            return True
        self.good_steps += 1
        if self.good_steps == GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0
        return True

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name."""
        return {"value": torch.tensor(self.value), "good_steps": torch.tensor(self.good_steps)}

    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave; nothing of a run that had another precision before."""
        if named:
            self.value, self.good_steps = float(named["value"]), int(named["good_steps"])


@torch.no_grad()
def unscale(gradients: list[Tensor], scale: float) -> None:
    """Divide all gradients by the scale."""
    torch._foreach_mul_(gradients, 1 / scale)
