"""What a step of subspace learning optimises: one subspace of the embedding, on a batch of its own cluster.

Adiga, Dolz and Lombaert 2022, "Attention-based Dynamic Subspace Learners", https://doi.org/10.1109/JBHI.2022.3186882;
Sanakoyeu et al. 2019, "Divide and Conquer the Embedding Space", https://arxiv.org/abs/1906.05990.

Legend: B images of the global batch, D embedding width, d_k width of subspace k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from cluster.growth import Growth
from data_shards import keyed
from trainer.losses.library import keyed_streams
from trainer.objectives.learners import Learners
from trainer.objectives.objective import Objective, Update
from trainer.subspaces.partition import SubspacePartition

Tuples = tuple[Tensor, ...]


class SubspaceObjective(Objective):
    """Mine among the block of one subspace and take its loss.

    Args:
        learners: the losses, (vectors (B, d), labels (B,), tuples) -> ().
        miner: (vectors (B, d), labels (B,), generator) -> triplets or pairs of indices, or None.
        seed: key of what miner and losses draw.
        normalize: blocks are made unit rows first.
        draws: a loss draws from torch's global stream, as some of pytorch-metric-learning do.
    """

    def __init__(
        self,
        learners: Learners,
        miner: Callable[..., Tuples | None],
        seed: int,
        normalize: bool = True,
        draws: bool = False,
    ) -> None:
        self.learners, self.miner, self.seed, self.normalize, self.draws = learners, miner, seed, normalize, draws

    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        self.learners.zero_grad()
        yield Update("embedding", self._loss(vectors, labels, partition, subspace, step))

    def _loss(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Tensor:
        """Return the loss () of one subspace, or of the whole; what is drawn for it is keyed by the step."""
        block = self._block(vectors, partition, subspace)
        key = keyed.key(self.seed, "mine", step) >> 1
        tuples = self.miner(block.detach(), labels, torch.Generator(block.device).manual_seed(key))
        with keyed_streams(keyed.key(self.seed, "loss", step) >> 1) if self.draws else nullcontext():
            return self.learners.of(subspace)(block, labels, tuples)

    def _block(self, vectors: Tensor, partition: SubspacePartition, subspace: int | None) -> Tensor:
        if subspace is None:
            return partition.normalize(vectors) if self.normalize else vectors
        return partition.block(vectors, subspace) if self.normalize else vectors[:, partition.slices[subspace]]

    def parameters(self) -> list[Tensor]:
        return list(self.learners.parameters())

    def step(self, factor: float) -> None:
        self.learners.step(factor)

    def grow(self, growth: Growth) -> None:
        self.learners.grow(growth)

    def tensors(self) -> dict[str, Tensor]:
        return self.learners.tensors()

    def load_tensors(self, named: dict[str, Tensor], partition: SubspacePartition) -> None:
        self.learners.load_tensors(named, partition)
