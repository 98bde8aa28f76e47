"""What a step of local discrimination optimises: that patches and regions are told apart, without any label.

    L = instance loss of patches + of mixed patches [ + 10 region loss + 0.1 entropy of the clusters ]

Chen et al. 2021, https://arxiv.org/abs/2108.09440. Images come in pairs. Of each pair the network sees five: a first
view of both, a second view of both, turned, and a mixture of the first views. Turns are undone on the grid of patches;
a patch of the mixture should lie between the patches it was mixed of. What is drawn is keyed by step and place in the
global batch, so every rank knows it of all pairs.

Legend: P pairs of the global batch, p of a rank, G x G patches, K clusters, d embedding channels, D columns of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards import keyed
from trainer.heads.dense import LocalLayout
from trainer.losses.local import instance_loss, region_loss
from trainer.objectives.critic import ShapeGuide
from trainer.objectives.objective import Objective, Update
from trainer.subspaces.partition import SubspacePartition

SEEN = 5  # images that the network sees of a pair


class Draws(NamedTuple):
    """Of each pair: whether the second view of each image is turned by half (P, 2), by how many quarters it is turned
    besides (P, 2), and the weight of the first image in the mixture (P,)."""

    half: npt.NDArray[np.bool_]
    quarters: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]


class LocalObjective(Objective):
    """The losses of both stages; with `region_weight` and `entropy_weight` 0 and no clusters it is the first.

    Args:
        layout: of the rows that the dense head gives.
        temperature, region_temperature: of the two losses.
        mix: smallest and largest weight of the first image in a mixture.
        guide: a critic that the first cluster must please, for segmentation guided by shapes.
    """

    views = 2

    def __init__(
        self,
        layout: LocalLayout,
        seed: int,
        temperature: float = 0.1,
        region_temperature: float = 0.2,
        region_weight: float = 10.0,
        entropy_weight: float = 0.1,
        mix: tuple[float, float] = (0.2, 0.8),
        guide: ShapeGuide | None = None,
    ) -> None:
        self.layout, self.seed, self.mix = layout, seed, mix
        self.temperature, self.region_temperature = temperature, region_temperature
        self.region_weight, self.entropy_weight, self.guide = region_weight, entropy_weight, guide
        self._step = 0

    def seen(self, images: Tensor, places: npt.NDArray[np.int64], step: int) -> Tensor:
        """Return what the network sees (5 p, C, S, S) of two views of this rank's images (2 p, 2, C, S, S), which have
        `places` (2 p,) in the global batch."""
        pairs = images.unflatten(0, (-1, 2))  # (p, image, view, C, S, S)
        drawn = self._draws(places[::2] // 2, step)
        weight = torch.from_numpy(drawn.weight.astype(np.float32)).to(images.device)[:, None, None, None]
        mixed = weight * pairs[:, 0, 0] + (1 - weight) * pairs[:, 1, 0]
        turned = torch.stack(
            [
                torch.stack([_turned(pairs[i, j, 1], drawn.half[i, j], drawn.quarters[i, j]) for j in (0, 1)])
                for i in range(len(pairs))
            ]
        )
        seen = [pairs[:, 0, 0], pairs[:, 1, 0], turned[:, 0], turned[:, 1], mixed]
        return torch.stack(seen, dim=1).flatten(0, 1)

    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        count = len(vectors) // SEEN
        drawn = self._draws(np.arange(count), step)
        parts = self.layout.unpack(vectors)
        grid = self.layout.grid
        patches = parts.patches.unflatten(1, (grid, grid)).unflatten(0, (count, SEEN))  # (P, 5, G, G, d)
        first = patches[:, :2]
        second = torch.stack(
            [
                torch.stack([_undone(patches[i, 2 + j], drawn.half[i, j], drawn.quarters[i, j]) for j in (0, 1)])
                for i in range(count)
            ]
        )
        weight = torch.from_numpy(drawn.weight.astype(np.float32)).to(vectors)[:, None, None, None]
        target = F.normalize(weight * first[:, 0] + (1 - weight) * first[:, 1], dim=-1).detach()
        own = instance_loss(torch.cat([_rows(first), _rows(second)]), self.temperature)
        mixed = instance_loss(torch.cat([_rows(patches[:, 4]), _rows(target)]), self.temperature)
        terms = {"patches": own, "mixed": mixed}
        if self.layout.num_clusters:
            unmixed = torch.arange(len(vectors), device=vectors.device) % SEEN != SEEN - 1
            terms["regions"] = self.region_weight * region_loss(parts.regions[unmixed], self.region_temperature)
            terms["entropy"] = self.entropy_weight * parts.entropy[unmixed].mean()
        if self.guide is not None and torch.is_grad_enabled():  # of validation the critic, which changes, is no part
            side = self.layout.shape_side
            unmixed = torch.arange(len(vectors), device=vectors.device) % SEEN != SEEN - 1
            terms["shape"] = self.guide.loss(parts.shape[unmixed].unflatten(1, (side, side)))
            if self.guide.agreement > 0:
                maps = parts.shape.unflatten(1, (side, side)).unflatten(0, (count, SEEN))
                terms["agreement"] = self.guide.agreement * _disagreement(maps, drawn)
            self._step = step
        loss = torch.stack(list(terms.values())).sum()
        yield Update("embedding", loss, terms)

    def parameters(self) -> Sequence[Tensor]:
        return [] if self.guide is None else list(self.guide.critic.parameters())

    def step(self, factor: float) -> None:
        if self.guide is not None:
            self.guide.step(factor, self._step)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.guide is None else self.guide.tensors()

    def load_tensors(self, named: dict[str, Tensor], partition: SubspacePartition) -> None:
        if self.guide is not None:
            self.guide.load_tensors(named)

    def _draws(self, pairs: npt.NDArray[np.int64], step: int) -> Draws:
        u = keyed.uniform(keyed.fold(keyed.key(self.seed, "local", step), pairs), 5)
        low, high = self.mix
        return Draws(u[:, 0:2] < 0.5, (4 * u[:, 2:4]).astype(np.int64), low + (high - low) * u[:, 4])


def _rows(patches: Tensor) -> Tensor:
    return patches.flatten(0, -2)


def _turned(image: Tensor, half: bool, quarters: int) -> Tensor:
    """Return an image (C, S, S) turned by half, then by quarters."""
    return torch.rot90(image, int(quarters) + 2 * int(half), (1, 2))


def _disagreement(maps: Tensor, drawn: Draws) -> Tensor:
    """Return the mean squared difference () of the two views of an image, turns undone, of maps (P, 5, S, S)."""
    undone = [
        _undone(maps[i, 2 + j][..., None], drawn.half[i, j], drawn.quarters[i, j])[..., 0]
        for i in range(len(maps))
        for j in (0, 1)
    ]
    return (maps[:, :2].flatten(0, 1) - torch.stack(undone)).square().mean()


def _undone(patches: Tensor, half: bool, quarters: int) -> Tensor:
    """Return a grid (G, G, d) as it was before its image was turned."""
    return torch.rot90(patches, -(int(quarters) + 2 * int(half)), (0, 1))
