"""Re-ranking: look at the neighbours of a query once more, after the plain search.

`QueryExpansion` asks again with the mean of a query and its first neighbours; `KReciprocal` compares the neighbourhoods
of query and neighbour (trainer/metrics/reciprocal.py). Both see of a query nothing but the query and its own gallery:
what is removed from it (itself, its patient, its scan) has no influence, nor have other queries on another gallery.

Legend: N queries, M items of the gallery, D embedding width, n queries of a chunk, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from trainer.metrics.neighbours import Ranking, Space
from trainer.metrics.reciprocal import Reciprocal


@dataclass(frozen=True)
class QueryExpansion:
    """Ask again with the sum of a query and its first k neighbours, each weighted by its cosine to the power of alpha.

    Radenovic et al. 2018 (https://arxiv.org/abs/1711.02512); with alpha 0 every neighbour weighs 1 (Chum et al. 2007,
    "Total recall"). A cosine below 0 counts as 0; the sum gets the norm of the query again. Costs a second search.

    Raises:
        ValueError: k below 1, or alpha below 0.
    """

    k: int = 10
    alpha: float = 3.0

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.alpha < np.inf:
            raise ValueError("k must be 1 or more, and alpha 0 or more")

    def __call__(self, space: Space) -> Ranking:
        expanded = space.queries.double()
        expanded = expanded.clone() if expanded is space.queries else expanded
        for part in space.chunks(2**24 // (self.k * expanded.shape[1] + 1) + 1, self.k):
            rows, _ = space.nearest(part, min(self.k, space.num_items))
            found = space.gallery[np.maximum(rows, 0)].double()
            expanded[part] = self._expanded(space.queries[part].double(), found, rows >= 0)
        return space.asking(expanded)

    def _expanded(self, queries: torch.Tensor, found: torch.Tensor, there: np.ndarray) -> torch.Tensor:
        """Return (n, D) of queries (n, D) and their neighbours (n, k, D), of which some are not there (n, k)."""
        norms = queries.norm(dim=1, keepdim=True)
        cosines = (found @ queries[:, :, None])[..., 0] / (norms * found.norm(dim=2)).clamp(min=1e-30)
        weights = cosines.clamp(0, 1) ** self.alpha * torch.from_numpy(there).to(cosines)
        total = queries + (weights[..., None] * found).sum(dim=1)
        return total * norms / total.norm(dim=1, keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True)
class KReciprocal:
    """Order a query's shortlist by how much its neighbourhood and theirs have in common.

    Zhong et al. 2017 (https://arxiv.org/abs/1701.08398): k1 nearest items make a neighbourhood, k2 are averaged, and
    `distance_weight` (their lambda) is what the plain distance keeps of the whole. Behind the first `shortlist`
    items the plain order stays; with a shortlist as long as the gallery this is the published method. See `Reciprocal`
    for what it costs.

    Raises:
        ValueError: k1, k2 or shortlist below 1, k2 above k1, or a weight outside 0 .. 1.
    """

    k1: int = 20
    k2: int = 6
    distance_weight: float = 0.3
    shortlist: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.k2 <= self.k1 or self.shortlist < 1 or not 0 <= self.distance_weight <= 1:
            raise ValueError("k1 must be k2 or more, k2 and shortlist 1 or more, and distance_weight 0 to 1")

    def __call__(self, space: Space) -> Ranking:
        return Reciprocal(space, self.k1, self.k2, self.distance_weight, self.shortlist)


Reranking: TypeAlias = QueryExpansion | KReciprocal
