"""Features that training computes anyway, kept for the next clustering: no forward pass of their own.

A row's features are those of its last visit, with the weights and the view of that moment. They count for `max_age`
epochs; a row without is embedded when it is needed. A visit belongs to the rank that held its place in the batch; which
rank saw a row last, all learn when features are asked for, by telling each other the rows that they saw. Unit features
in half precision keep three digits, more than bf16 computes, in half the memory.

Legend: S training rows, B global batch, n rows of it on this rank, F feature width, M rows whose last visit was here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.samplers import shares
from trainer import distributed

Rows = npt.NDArray[np.int64]
NEVER = -(1 << 40)


class Recycled:
    """The last features of every training row, spread over the ranks; all ranks call every method together.

    Args:
        num_rows, num_features: S and F.
        max_age: epochs for which features count.
        device: where they are kept.
    """

    def __init__(self, num_rows: int, num_features: int, max_age: int, device: torch.device | str = "cpu") -> None:
        self._max_age, self._device = max_age, torch.device(device)
        self._shape = num_rows, num_features
        self.forget()

    def forget(self) -> None:
        """Forget everything: the weights are others now."""
        self._seen = np.full(self._shape[0], NEVER, dtype=np.int64)  # epoch of the last visit, on every rank
        self._rows = np.empty(0, dtype=np.int64)
        self._features = torch.zeros(0, self._shape[1], dtype=torch.float16, device=self._device)
        self._visits: list[tuple[int, Rows, Sequence[int], Tensor]] = []

    def note(self, epoch: int, rows: Rows, counts: Sequence[int], features: Tensor) -> None:
        """Keep the features (n, F) of this rank's rows (n,) of a batch, of which rank r held counts[r] rows.

        Never waits for the device.
        """
        self._visits.append((epoch, rows, counts, features.detach().to(torch.float16)))

    def take(self, epoch: int) -> tuple[Rows, Tensor]:
        """Return the rows (M,) that this rank saw last, ascending, and their features (M, F), for a clustering at the
        start of `epoch`."""
        self._settle()
        young = np.flatnonzero(self._seen[self._rows] >= epoch - self._max_age)
        return self._rows[young], self._features[torch.from_numpy(young).to(self._device)]

    def missing(self, epoch: int) -> Rows:
        """Return the rows that no rank has features of, or too old ones, ascending; the same on every rank."""
        self._settle()
        return np.flatnonzero(self._seen < epoch - self._max_age)

    def tensors(self) -> dict[str, Tensor]:
        """Return the features of all ranks by row, for a checkpoint: the same for any number of ranks."""
        self._settle()
        with distributed.stage("gather of the kept features"):
            rows = np.concatenate(distributed.gather_arrays(self._rows))
            features = distributed.gather_uneven_rows(self._features).cpu()
        order = np.argsort(rows)
        rows = rows[order]
        return {
            "recycled/rows": torch.from_numpy(rows),
            "recycled/epochs": torch.from_numpy(self._seen[rows]),
            "recycled/features": features[torch.from_numpy(order)],
        }

    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave, each rank a share of it."""
        self.forget()
        if "recycled/rows" not in named:
            return
        rows = named["recycled/rows"].numpy()
        self._seen[rows] = named["recycled/epochs"].numpy()
        own = shares(len(rows), distributed.rank(), distributed.world_size())
        self._rows = rows[own.start : own.stop].copy()
        self._features = named["recycled/features"][own.start : own.stop].to(self._device, copy=True)

    def _settle(self) -> None:
        """Bring noted visits down to the last one of every row."""
        if not self._visits:
            return
        epochs = np.concatenate([np.full(sum(counts), epoch) for epoch, _, counts, _ in self._visits])
        ranks = np.arange(distributed.world_size(), dtype=np.uint16)  # which numpy sorts by counting
        holders = np.concatenate([np.repeat(ranks, counts) for _, _, counts, _ in self._visits])
        with distributed.stage("gather of the rows that were seen"):
            seen = distributed.gather_arrays(np.concatenate([each for _, each, _, _ in self._visits]))
        rows = np.empty(len(holders), dtype=np.int64)
        rows[np.argsort(holders, kind="stable")] = np.concatenate(seen)  # each rank's, batch after batch
        last = np.full(len(self._seen), -1, dtype=np.int64)
        last[rows] = np.arange(len(rows))  # of a row that comes up again, the last visit stays
        visited = np.flatnonzero(last >= 0)
        self._seen[visited] = epochs[last[visited]]
        here = np.flatnonzero(holders == distributed.rank())
        new = visited[holders[last[visited]] == distributed.rank()]
        kept = np.flatnonzero(last[self._rows] < 0)
        mixed = np.concatenate([self._rows[kept], new])
        order = np.argsort(mixed)
        places = np.concatenate([kept, len(self._rows) + np.searchsorted(here, last[new])])[order]
        held = torch.cat([self._features, *(features for _, _, _, features in self._visits)])
        self._rows, self._features = mixed[order], held[torch.from_numpy(places).to(self._device)]
        self._visits = []
