"""What a step of an ensemble optimises: every learner on every image, and that they differ.

    L = mean over learners of their loss + weight * divergence

Kim et al. 2018, "Attention-based Ensemble for Deep Metric Learning", https://arxiv.org/abs/1804.00382. The learners are
the subspaces of the embedding; nothing is clustered.

Legend: B images of the global batch, D embedding width, M learners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from trainer.losses.divergence import Pairs, divergence
from trainer.objectives.learners import Learners
from trainer.objectives.objective import Update
from trainer.objectives.subspace import SubspaceObjective, Tuples
from trainer.subspaces.partition import SubspacePartition


class EnsembleObjective(SubspaceObjective):
    """Take the loss of every learner on the whole batch, and `weight` times their divergence.

    Args:
        learners, miner, seed, normalize, draws: as in `SubspaceObjective`.
        weight, margin, pairs: of the divergence (`trainer.losses.divergence`).
    """

    def __init__(
        self,
        learners: Learners,
        miner: Callable[..., Tuples | None],
        seed: int,
        normalize: bool = True,
        draws: bool = False,
        weight: float = 0.0,
        margin: float = 0.2,
        pairs: Pairs = "same_image",
    ) -> None:
        super().__init__(learners, miner, seed, normalize, draws)
        self.weight, self.margin, self.pairs = weight, margin, pairs

    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        self.learners.zero_grad()
        losses = [self._loss(vectors, labels, partition, k, step) for k in range(partition.num_subspaces)]
        terms = {"learners": torch.stack(losses).mean()}
        loss = terms["learners"]
        if self.weight:
            units = [partition.block(vectors, k) for k in range(partition.num_subspaces)]
            terms["divergence"] = self.weight * divergence(units, self.margin, self.pairs)
            loss = loss + terms["divergence"]
        yield Update("embedding", loss, terms)
