"""Maps of pixels: the first cluster, likeness to region vectors by a slow loop, certainty, what has no clusters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data_shards.augment import AugmentConfig
from data_shards.build import build
from data_shards.errors import UserError
from data_shards.loader import eval_images
from data_shards.reader import open_shards
from trainer.backbones.norm import norm_factory
from trainer.backbones.small import SmallResNet
from trainer.backbones.vgg import VGG
from trainer.heads.dense import DenseEmbedding, Pixels
from trainer.model import EmbeddingModel
from trainer.segmentation import pixels


def some() -> Pixels:
    torch.manual_seed(0)
    return Pixels(F.normalize(torch.randn(2, 5, 6, 6), dim=1), torch.rand(2, 3, 6, 6).softmax(dim=1))


def test_the_likeness_to_regions_is_the_loop_over_pixels() -> None:
    given = some()
    assert given.clusters is not None
    found = pixels.nearest_region(given)
    for n in range(2):
        regions = [F.normalize((given.clusters[n, k] * given.vectors[n]).sum(dim=(1, 2)), dim=0) for k in range(3)]
        for y, x in ((0, 0), (3, 5)):
            cosines = torch.stack([region @ given.vectors[n, :, y, x] for region in regions])
            assert float(found[n, y, x]) == pytest.approx(float((cosines / 0.2).softmax(dim=0)[0]), abs=1e-5)


def test_certainty_is_one_at_the_ends_and_nothing_in_the_middle() -> None:
    clusters = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    found = pixels.certainty(Pixels(torch.zeros(1, 2, 1, 3), clusters))
    assert found.flatten().tolist() == pytest.approx([1, 0, 1], abs=1e-5)


@pytest.mark.parametrize("coarse", [False, True])
def test_maps_have_the_size_of_the_image(tmp_path: Path, coarse: bool) -> None:
    build("phantoms", tmp_path / "shards", size=32, options={"num_samples": 20})
    reader, config = open_shards(tmp_path / "shards").split("train"), AugmentConfig(32)
    backbone = SmallResNet((4, 8), (1, 1), stem_stride=2) if coarse else VGG("tiny", "group")
    head = DenseEmbedding(backbone.channels, norm_factory("group"), 4, 8, 3)
    network = EmbeddingModel(backbone, head)
    rows = np.array([3, 0, 5])
    maps = pixels.maker(network, config, pixels.cluster)(reader, rows)
    found = maps(slice(1, 3))
    assert found.shape == (2, 32, 32)
    if not coarse:
        with torch.no_grad():
            expected = head.pixels(network.eval().levels(eval_images(reader, rows[1:], config))).clusters
        assert expected is not None
        torch.testing.assert_close(found, expected[:, 0])


def test_a_network_without_clusters_is_refused() -> None:
    backbone = VGG("tiny", "group")
    network = EmbeddingModel(backbone, DenseEmbedding(backbone.channels, norm_factory("group"), 4, 8, 0))
    with pytest.raises(UserError, match="no clusters of pixels"):
        pixels.maker(network, AugmentConfig(32), pixels.cluster)
