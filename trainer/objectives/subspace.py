"""What a step of subspace learning optimises: one subspace of the embedding, on a batch of its own cluster.

Adiga, Dolz and Lombaert 2022, "Attention-based Dynamic Subspace Learners", https://doi.org/10.1109/JBHI.2022.3186882;
Sanakoyeu et al. 2019, "Divide and Conquer the Embedding Space", https://arxiv.org/abs/1906.05990.

Legend: B images of the global batch, D embedding width, d_k width of subspace k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_shards import keyed
from trainer.subspaces.partition import SubspacePartition

Triplets = tuple[Tensor, Tensor, Tensor]


@dataclass
class Update:
    """One player's turn: a scalar to minimise, and its parts for the record."""

    player: str
    loss: Tensor
    terms: dict[str, float] = field(default_factory=dict)


class SubspaceObjective:
    """Mine triplets among the block of one subspace and take their loss.

    Args:
        loss: (vectors (B, d) unit, labels (B,), triplets) -> ().
        miner: (vectors (B, d) unit, labels (B,), generator) -> anchors, positives, negatives.
        seed: key of the miner's draws.
    """

    def __init__(self, loss: Callable[..., Tensor], miner: Callable[..., Triplets], seed: int) -> None:
        self.loss, self.miner, self.seed = loss, miner, seed

    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        """Yield the one update of this step for vectors (B, D) of the global batch; subspace None trains all of D."""
        unit = partition.normalize(vectors) if subspace is None else partition.block(vectors, subspace)
        generator = torch.Generator(unit.device).manual_seed(keyed.key(self.seed, "mine", step) >> 1)
        triplets = self.miner(unit.detach(), labels, generator)
        yield Update("embedding", self.loss(unit, labels, triplets))
