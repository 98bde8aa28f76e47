"""What an objective is to the loop: it yields scalars to minimise, and keeps what it learns itself.

Legend: B images of the global batch, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from cluster.growth import Growth
from trainer.subspaces.partition import SubspacePartition


@dataclass
class Update:
    """One player's turn: a scalar to minimise, and its parts for the record."""

    player: str
    loss: Tensor
    terms: dict[str, float] = field(default_factory=dict)


class Objective(ABC):
    """Looks at the vectors of the global batch, the same on every rank; what it learns is whole on every rank."""

    @abstractmethod
    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        """Yield the updates of this step for vectors (B, D) of the global batch; subspace None trains all of D."""

    @abstractmethod
    def parameters(self) -> Sequence[Tensor]:
        """Return what is learned here, beside the network."""

    @abstractmethod
    def step(self, factor: float) -> None:
        """Apply the gradients of `parameters` at `factor` times their base rate; all ranks ask together."""

    @abstractmethod
    def grow(self, growth: Growth) -> None:
        """Follow a split of the last subspace."""

    def divide(self, parents: Sequence[int]) -> None:  # noqa: B027 - most objectives have nothing to divide
        """Follow a division of clusters: cluster k is now made of rows that were mostly in cluster parents[k]."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what is learned and its moments by name, for a checkpoint."""

    @abstractmethod
    def load_tensors(self, named: dict[str, Tensor], partition: SubspacePartition) -> None:
        """Take back what `tensors` gave, among the tensors of a checkpoint."""
