"""Validators: the loss of fixed batches and the overlap of masks, alike on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.augment import AugmentConfig
from data_shards.build import build as build_shards
from data_shards.evaluation import mask_views
from data_shards.loader import eval_images
from data_shards.reader import SplitReader, open_shards
from tests.ranks import run_on_ranks
from trainer.backbones.norm import norm_factory
from trainer.backbones.vgg import VGG
from trainer.evaluate import EmbedOptions
from trainer.heads.dense import DenseEmbedding
from trainer.heads.mask import MaskHead
from trainer.model import EmbeddingModel
from trainer.objectives.local import LocalObjective
from trainer.segmentation.scores import overlap
from trainer.subspaces.partition import SubspacePartition
from trainer.validators import Overlaps, PretextLoss

SIZE = 32
CONFIG = AugmentConfig(
    SIZE, rotate_degrees=30, crop_scale=(0.9, 1.0), own=AugmentConfig(SIZE, rotate_degrees=2, brightness=0.3, gray=0.2)
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validators") / "phantoms"
    build_shards("phantoms", folder, size=SIZE, options={"num_samples": 60})
    return folder


def validation(shards: Path) -> SplitReader:
    return open_shards(shards).split("validation")


def network(dense: bool) -> EmbeddingModel:
    backbone, norm = VGG("tiny", "group"), norm_factory("group")
    head = DenseEmbedding(backbone.channels, norm, 4, 8, 4) if dense else MaskHead(backbone.channels, norm, SIZE)
    return EmbeddingModel(backbone, head)


def pretext(shards: Path, precision: str = "fp32") -> float:
    torch.set_num_threads(1)
    split, model = validation(shards), network(dense=True)
    assert isinstance(model.head, DenseEmbedding)
    batches = [(0, np.arange(start, start + 4)) for start in range(0, 12, 4)]
    options = EmbedOptions(CONFIG, precision=precision)
    judge = PretextLoss(split, options, LocalObjective(model.head.layout, seed=1), batches, seed=1)
    found = judge(model, SubspacePartition((model.head.num_dims,)))
    assert found is not None and found == judge(model, SubspacePartition((model.head.num_dims,)))
    assert model.training
    return float(found["loss"])


@pytest.mark.usefixtures("alone")
def test_the_loss_of_fixed_batches_is_the_same_on_any_number_of_ranks(shards: Path) -> None:
    alone = pretext(shards)
    assert 0 < alone < 100
    assert run_on_ranks(pretext, 2, shards) == [alone, alone]
    assert pretext(shards, "bf16") == pytest.approx(alone, rel=0.1)


@pytest.mark.usefixtures("alone")
def test_a_loss_that_is_not_finite_is_none(shards: Path) -> None:
    split, model = validation(shards), network(dense=True)
    assert isinstance(model.head, DenseEmbedding)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    objective = LocalObjective(model.head.layout, seed=1)
    judge = PretextLoss(split, EmbedOptions(CONFIG), objective, [(0, np.arange(4))], seed=1)
    assert judge(model, SubspacePartition((model.head.num_dims,))) is None
    assert Overlaps(split, EmbedOptions(CONFIG)).counted(_spoilt_mask_network()) is None


def _spoilt_mask_network() -> EmbeddingModel:
    model = network(dense=False)
    with torch.no_grad():
        model.head.last.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
    return model


def overlaps(shards: Path) -> list[float]:
    torch.set_num_threads(1)
    found = Overlaps(validation(shards), EmbedOptions(CONFIG, batch_size=5))(
        network(dense=False), SubspacePartition((1,))
    )
    assert found is not None
    return [found["dice"]["mean"], found["dice"]["std"], found["iou"]["mean"]]


@pytest.mark.usefixtures("alone")
def test_overlaps_are_those_of_each_image_on_any_number_of_ranks(shards: Path) -> None:
    split, model = validation(shards), network(dense=False).eval()
    rows = np.arange(len(split))
    with torch.no_grad():
        maps = model(eval_images(split, rows, CONFIG)).vectors.unflatten(1, (SIZE, SIZE)).numpy()
    expected = overlap(maps > 0.5, mask_views(split, rows, CONFIG))
    found = overlaps(shards)
    assert found == pytest.approx([expected.dice.mean(), expected.dice.std(), expected.iou.mean()], abs=1e-3)
    assert run_on_ranks(overlaps, 2, shards) == [found, found]
