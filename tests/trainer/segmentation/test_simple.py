"""Baselines that need no network: grey levels, Otsu's parts, all foreground."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_shards.augment import AugmentConfig
from data_shards.loader import eval_images
from data_shards.otsu import otsu
from data_shards.reader import ShardFolder
from trainer.segmentation.protocol import judge, splits
from trainer.segmentation.simple import grey_levels, simple_methods

CONFIG = AugmentConfig(size=32)


def test_grey_levels_are_those_of_the_stored_image(phantoms: ShardFolder) -> None:
    reader = phantoms.split("test")
    found = grey_levels(eval_images(reader, np.arange(4), CONFIG), CONFIG)
    for row in range(4):
        expected = (reader.image(row) * np.array([0.299, 0.587, 0.114])).sum(-1) / 255
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    gray = torch.full((1, 1, 2, 2), 0.5)
    config = AugmentConfig(size=2, channels=1, mean=(0.3,), std=(0.2,))
    torch.testing.assert_close(grey_levels(gray, config), torch.full((1, 2, 2), 0.4))


def test_on_phantoms_the_lesion_is_dark(phantoms: ShardFolder) -> None:
    tuning, held_out, _ = splits(phantoms.split("validation"), phantoms.split("test"), CONFIG)
    found = {method.name: judge(method, tuning, held_out) for method in simple_methods(CONFIG)}
    assert list(found) == ["everything", "grey_level", "green_level", "otsu"]
    assert found["grey_level"].variant == found["otsu"].variant == "dark"
    share = held_out.masks.mean(axis=(1, 2))
    np.testing.assert_allclose(found["everything"].overlap.dice, 2 * share / (1 + share))
    for row, dice in zip(held_out.rows, found["otsu"].overlap.dice, strict=True):
        grey = np.round((held_out.reader.image(int(row)) * np.array([0.299, 0.587, 0.114])).sum(-1))
        dark, true = grey <= otsu(grey.astype(np.uint8)), held_out.reader.mask(int(row)) > 0
        assert dice == pytest.approx(2 * (dark & true).sum() / (dark.sum() + true.sum()), abs=0.02)
