"""Dropout whose mask is drawn outside the network, keyed by sample id.

A mask drawn inside would depend on which rank holds the sample; this one does not, and a recomputed forward pass
(gradient caching, checkpointing) sees the same mask again.

Legend: B batch, F feature width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from data_shards import keyed


def dropout_keep(
    seed: int, step: int, sample_ids: npt.ArrayLike, num_features: int, probability: float
) -> torch.Tensor:
    """Return (B, F) float32: 0 with the given probability, else 1 / (1 - probability).

    `step` is the global optimiser step. Raises ValueError unless 0 <= probability < 1.
    """
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"dropout probability must be in [0, 1), got {probability}")
    draws = keyed.uniform(keyed.fold(keyed.key(seed, "dropout", step), np.asarray(sample_ids)), num_features)
    keep = (draws >= probability).astype(np.float32) / np.float32(1.0 - probability)
    return torch.from_numpy(keep)
