"""What was not finite in a step, and on which ranks: agreed upon by all of them before anything is applied.

Every rank looks at its own vectors, its loss with the gradient of the vectors, and its gradients of the weights. One
gather of a few numbers per rank is the step's only look at the device, so the loss and a rank's wish to stop travel
with the flags; nobody skips alone, which would leave its peers in another collective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import distributed
from trainer.engines.replicas import ranks_in_words


@dataclass(frozen=True)
class Verdict:
    """The ranks that saw something that is not finite, by what it was; the loss of this rank, which is that of all; and
    whether a rank wishes to stop."""

    vectors: tuple[int, ...]
    losses: tuple[int, ...]
    gradients: tuple[int, ...]
    num_ranks: int
    loss: float
    stop: bool

    @property
    def fine(self) -> bool:
        """Whether the step may be applied."""
        return not (self.vectors or self.losses or self.gradients)

    @property
    def overflow(self) -> bool:
        """Whether only gradients were not finite, as when a loss scale is too great."""
        return bool(self.gradients) and not (self.vectors or self.losses)

    @property
    def cause(self) -> str:
        """What was not finite, in words: the first thing that went wrong, with its ranks unless it was all of them."""
        if self.vectors:
            return f"the vectors of {ranks_in_words(list(self.vectors))}"
        name, ranks = ("the loss", self.losses) if self.losses else ("the gradients", self.gradients)
        return name if len(ranks) == self.num_ranks else f"{name} on {ranks_in_words(list(ranks))}"


def agree(vectors: Tensor, loss_fine: Tensor, gradients: Tensor, loss: Tensor, stop: bool) -> Verdict:
    """Return, the same on every rank, what the ranks' flags (bool, True: finite) come to. Waits for the device."""
    wish = torch.tensor(stop, device=loss.device)
    told = torch.stack([each.detach().double() for each in (vectors, loss_fine, gradients, loss, wish)])
    with distributed.stage("agreement on the step"):
        rows = distributed.gather_rows(told[None]).tolist()
    bad = [tuple(rank for rank, row in enumerate(rows) if not row[what]) for what in range(3)]
    loss_here, stops = rows[distributed.rank()][3], any(row[4] for row in rows)
    return Verdict(bad[0], bad[1], bad[2], len(rows), loss_here, stops)
