"""What the validation split says of a network at the end of an epoch: the number that a run is steered and kept by.

Legend: V views, B images of a batch, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import numpy as np
import torch

from data_shards.evaluation import mask_views
from data_shards.loader import train_loader
from data_shards.order import GlobalBatch
from data_shards.reader import SplitReader
from data_shards.samplers import shares
from trainer import distributed, evaluate
from trainer.model import EmbeddingModel
from trainer.objectives.objective import Objective
from trainer.segmentation.scores import Overlap, joined, overlap
from trainer.subspaces.partition import SubspacePartition


class Validator(Protocol):
    """Scores the validation split, the same on every rank; None where the network gives numbers that are not finite."""

    def __call__(self, model: EmbeddingModel, partition: SubspacePartition) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Retrieval:
    """Neighbours and clusters of the split's vectors; all ranks embed, rank 0 scores."""

    split: SplitReader
    options: evaluate.EmbedOptions
    nmi_seeds: int
    exclude: evaluate.Exclude

    def __call__(self, model: EmbeddingModel, partition: SubspacePartition) -> dict[str, Any] | None:
        vectors = evaluate.embed_split(model, self.split, partition, self.options)["vectors"]
        if not np.isfinite(vectors).all():  # every rank has all of them
            return None
        found = None
        if distributed.rank() == 0:
            found = evaluate.scores(vectors, self.split, partition, self.nmi_seeds, self.exclude)
        told: dict[str, Any] = distributed.broadcast_json(found)
        return told


@dataclass(frozen=True)
class PretextLoss:
    """The objective's own loss on fixed batches of the split, for training without labels.

    Images are augmented as in training, but alike at every epoch: with draws of its own each time, the best epoch would
    be the one of the luckiest. Every rank takes its share of whole batches.
    """

    split: SplitReader
    options: evaluate.EmbedOptions
    objective: Objective
    batches: Sequence[GlobalBatch]
    seed: int

    @torch.no_grad()
    def __call__(self, model: EmbeddingModel, partition: SubspacePartition) -> dict[str, Any] | None:
        own = shares(len(self.batches), distributed.rank(), distributed.world_size())
        was_training = model.training
        model.eval()
        try:
            losses = list(self._losses(model, partition, own))
        finally:
            model.train(was_training)
        with distributed.stage("gather of the losses"):
            every = np.concatenate(distributed.gather_arrays(np.array(losses, dtype=np.float64)))
        if not np.isfinite(every).all():
            return None
        return {"split": self.split.name, "num_samples": len(self.split), "loss": float(every.mean())}

    def _losses(self, model: EmbeddingModel, partition: SubspacePartition, own: range) -> Iterator[float]:
        device, options = next(model.parameters()).device, self.options
        batches = [self.batches[number] for number in own]
        loader = train_loader(
            self.split,
            batches,
            options.transform,
            self.seed,
            0,
            views=self.objective.views,
            num_workers=options.num_workers,
            device=device,
        )
        for number, batch in zip(own, loader, strict=True):
            distributed.pat()
            seen = self.objective.seen(batch.images, np.arange(len(batch.images)), number)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                vectors = model(seen.contiguous(memory_format=torch.channels_last)).vectors.float()
            updates = self.objective.updates(vectors, batch.labels.to(device), partition, None, number)
            yield sum(float(update.loss) for update in updates if update.player == "embedding")


@dataclass(frozen=True)
class Overlaps:
    """Dice and IoU of every image's predicted mask with its own, a pixel being foreground from one half on."""

    split: SplitReader
    options: evaluate.EmbedOptions

    def __call__(self, model: EmbeddingModel, partition: SubspacePartition) -> dict[str, Any] | None:
        counted = self.counted(model)
        return None if counted is None else self.scores(counted)

    def scores(self, counted: Overlap) -> dict[str, Any]:
        """Return means over the images."""
        values = {"dice": counted.dice, "iou": counted.iou}
        told = {name: {"mean": float(value.mean()), "std": float(value.std())} for name, value in values.items()}
        return {"split": self.split.name, "num_samples": len(self.split), **told}

    def counted(self, model: EmbeddingModel) -> Overlap | None:
        """Return the overlaps of the split's images, in row order, on every rank; None where one is not finite."""
        size, parts, fine = self.options.transform.size, [], True
        for rows, embedded in evaluate.embed_blocks(model, self.split, self.options):
            maps = embedded.vectors.unflatten(1, (size, size)).cpu().numpy()
            fine = fine and bool(np.isfinite(maps).all())
            parts.append(overlap(maps > 0.5, mask_views(self.split, rows, self.options.transform)))
        own = np.stack([[], [], []] if not parts else list(astuple(joined(parts))), axis=1).astype(np.int64)
        with distributed.stage("gather of the overlaps"):
            if distributed.any_rank(not fine):
                return None
            every = distributed.gather_uneven_rows(torch.from_numpy(own).to(distributed.device())).cpu().numpy()
        return Overlap(*every.T)
