"""The head of a classification network: pooled features and nothing else."""

from __future__ import annotations

import pytest
import torch

from trainer.backbones.small import SmallResNet
from trainer.heads.features import PooledFeatures
from trainer.model import EmbeddingModel
from trainer.optim import parameter_groups


def test_vectors_are_the_pooled_last_level() -> None:
    head = PooledFeatures(6, 6)
    level = torch.randn(2, 6, 3, 4)
    keep = torch.tensor([[2.0, 0, 2, 0, 2, 0]]).expand(2, 6)
    found = head([[level]], keep)
    torch.testing.assert_close(found.vectors, level.mean((2, 3)) * keep)
    torch.testing.assert_close(found.features.norm(dim=1), torch.ones(2))
    assert found.maps is None


def test_it_has_no_rows_and_no_group_of_its_own() -> None:
    model = EmbeddingModel(SmallResNet((6,), (1,)), PooledFeatures(6, 6))
    assert model.rows == {}
    assert len(parameter_groups(model, 0.1, 0.2)) == 1


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="must be the 6 channels"):
        PooledFeatures(6, 8)
