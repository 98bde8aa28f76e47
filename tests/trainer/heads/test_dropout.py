"""Dropout masks: keyed by sample, right rate, scaled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.heads.dropout import dropout_keep


def test_a_sample_keeps_its_mask_wherever_it_sits() -> None:
    whole = dropout_keep(0, 3, np.array([5, 6, 7, 8]), 64, 0.5)
    assert torch.equal(dropout_keep(0, 3, np.array([7, 5]), 64, 0.5), whole[[2, 0]])
    assert not torch.equal(dropout_keep(0, 4, np.array([5, 6, 7, 8]), 64, 0.5), whole)


def test_the_mean_is_kept() -> None:
    keep = dropout_keep(0, 0, np.arange(200), 500, 0.1)
    assert set(np.unique(keep.numpy()).tolist()) == {0.0, float(np.float32(1) / np.float32(0.9))}
    assert (keep == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert (dropout_keep(0, 0, np.arange(3), 4, 0.0) == 1).all()
    with pytest.raises(ValueError, match="probability"):
        dropout_keep(0, 0, np.arange(3), 4, 1.0)
