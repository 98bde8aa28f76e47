"""The same screen on a CUDA device by torch, for machines where no faiss GPU wheel fits.

Blocks are moved to the device once and stay there: only (K, F) centroids go up and labels come back per iteration.

Legend: n rows of a block, F feature width, K centroids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cluster.screen import Features, Screen, shifted_scores


def cuda_is_available() -> bool:
    """Say whether torch sees a CUDA device."""
    return torch.cuda.is_available()


class TorchBackend:
    """One matrix product per chunk on the first CUDA device, or on the CPU without one."""

    chunk = 65536

    def __init__(self, device: str | None = None) -> None:
        self._device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        # TF32 keeps 10 bits of mantissa: far outside the rounding bound that the screen relies on.
        torch.backends.cuda.matmul.allow_tf32 = False

    def load(self, block: Features) -> Any:
        """Return the block as a tensor on the device."""
        return torch.from_numpy(block if block.flags.writeable else block.copy()).to(self._device)

    def prepare(self, centroids: Features, max_norm: float) -> None:
        """Put the scores' weights for (K, F) centroids on the device."""
        weights, offsets, tolerance = shifted_scores(centroids, max_norm)
        self._weights = torch.from_numpy(weights).to(self._device)
        self._offsets = torch.from_numpy(offsets).to(self._device)
        self._tolerance = float(tolerance)

    def screen(self, chunk: Any) -> Screen:
        """Return labels and undecided pairs of a (n, F) tensor."""
        scores = torch.addmm(self._offsets, chunk, self._weights)
        best, labels = scores.min(dim=1)
        near = scores <= (best + self._tolerance)[:, None]
        undecided = torch.nonzero(near.sum(dim=1) > 1).flatten()
        pairs = torch.nonzero(near[undecided])
        rows = undecided[pairs[:, 0]].cpu().numpy()
        return Screen(labels.to(torch.int32).cpu().numpy(), rows.astype(np.int64), pairs[:, 1].cpu().numpy())
