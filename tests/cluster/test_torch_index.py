"""The bound on what bfloat16 rounds away holds where rounding is at its worst."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.backend import Block, exact_distances
from cluster.index import row_norm_bound
from cluster.torch_index import TorchBackend


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("width", [2, 3])
def test_whole_numbers_whose_products_do_not_fit_bfloat16(width: int, seed: int) -> None:
    """Rows and weights are exact in bfloat16, so nothing but the rounding of products makes up the bound."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-127, 128, (2000, width)).astype(np.float32)
    rows = np.concatenate((rows[:512], -rows[:512], rows[512:]))  # the reference, their mean, is zero
    centroids = rng.integers(-60, 61, (20, width)).astype(np.float32)
    centroids = np.concatenate((centroids, -centroids))
    backend = TorchBackend("cpu", torch.bfloat16)
    block = Block(rows, backend.load(rows))
    backend.prepare(centroids, row_norm_bound(rows))
    backend.relabel(block, None, 0)
    distances = [exact_distances(rows, np.broadcast_to(c, rows.shape)) for c in centroids]
    np.testing.assert_array_equal(block.labels, np.argmin(distances, axis=0))
