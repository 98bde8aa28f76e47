"""What a step of segmentation optimises: the overlap of predicted masks with the given ones, over the whole batch.

Legend: B images of the global batch, b of a rank, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from data_shards.loader import Batch
from trainer import distributed
from trainer.losses.local import soft_dice_loss
from trainer.objectives.objective import Objective, Update
from trainer.subspaces.partition import SubspacePartition


class OverlapObjective(Objective):
    """The soft Dice loss of the probabilities that a mask head gives."""

    wants_masks = True

    def targets(self, batch: Batch, labels: Tensor) -> Tensor:
        """Return the masks (B, S^2) uint8, 0 or 1, of the global batch, seen through their images' geometry."""
        assert batch.masks is not None
        local = (batch.masks[:, 0] > 0).flatten(1).to(labels.device).byte()
        with distributed.stage("gather of the masks"):
            return distributed.gather_uneven_rows(local)

    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        yield Update("embedding", soft_dice_loss(vectors, labels))
