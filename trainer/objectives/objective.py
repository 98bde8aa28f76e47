"""What an objective is to the loop: it yields scalars to minimise, and keeps what it learns itself.

Legend: B images of the global batch, b of a rank, V views, C channels, S x S pixels, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cluster.growth import Growth
from data_shards.loader import Batch
from trainer.subspaces.partition import SubspacePartition


@dataclass
class Update:
    """One player's turn: a scalar to minimise and, where it is a sum, its terms () for the record."""

    player: str
    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """Looks at the vectors of the global batch, the same on every rank; what it learns is whole on every rank.

    `views` is how many views of an image it wants; `wants_masks`, whether it wants their masks too.
    """

    views = 1
    wants_masks = False

    def targets(self, batch: Batch, labels: Tensor) -> Tensor:
        """Return what `updates` gets as labels: (B, ...) of the global batch, of this rank's `batch` and all labels."""
        return labels

    def seen(self, images: Tensor, places: npt.NDArray[np.int64], step: int) -> Tensor:
        """Return what the network sees (n, C, S, S) of this rank's images (b, V, C, S, S), `places` (b,) of the global
        batch; rows that belong together follow each other, so that ranks hold contiguous parts."""
        return images.flatten(0, 1)

    @abstractmethod
    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        """Yield the updates of this step for vectors (B, D) of what the network saw; subspace None trains all of D."""

    def parameters(self) -> Sequence[Tensor]:
        """Return what is learned here, beside the network."""
        return []

    def step(self, factor: float) -> None:  # noqa: B027 - most objectives learn nothing themselves
        """Apply the gradients of `parameters` at `factor` times their base rate; all ranks ask together."""

    def grow(self, growth: Growth) -> None:
        """Follow a split of the last subspace."""
        raise AssertionError(f"a {type(self).__name__} has no subspaces to split")

    def divide(self, parents: Sequence[int]) -> None:  # noqa: B027 - most objectives have nothing to divide
        """Follow a division of clusters: cluster k is now made of rows that were mostly in cluster parents[k]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what is learned and its moments by name, for a checkpoint."""
        return {}

    def load_tensors(self, named: dict[str, Tensor], partition: SubspacePartition) -> None:  # noqa: B027
        """Take back what `tensors` gave, among the tensors of a checkpoint."""
