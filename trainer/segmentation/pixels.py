"""Maps of a network that describes every pixel: its first cluster, in two readings, and how sure it is.

Chen et al. 2021, https://arxiv.org/abs/2108.09440: the target of shape-guided segmentation is the first cluster. Either
the cluster itself is read, or the likeness of each pixel to the image's region vectors, a softmax over clusters.

Legend: n images, K clusters, d embedding channels, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.augment import AugmentConfig
from data_shards.errors import UserError
from data_shards.loader import eval_images
from data_shards.reader import SplitReader
from trainer.heads.dense import DenseEmbedding, Pixels, binary_entropy
from trainer.model import EmbeddingModel
from trainer.segmentation.protocol import MapMaker, Maps, Places, Rows

TEMPERATURE = 0.2


def cluster(pixels: Pixels) -> Tensor:
    """Return the first cluster, (n, S, S)."""
    assert pixels.clusters is not None
    return pixels.clusters[:, 0]


def nearest_region(pixels: Pixels) -> Tensor:
    """Return the softmax over clusters of the cosine to the image's region vectors, of the first one, (n, S, S)."""
    vectors, clusters = pixels
    assert clusters is not None
    regions = F.normalize(clusters.flatten(2) @ vectors.flatten(2).mT, dim=2)  # (n, K, d)
    cosines = torch.einsum("nkd,ndhw->nkhw", regions, vectors)
    return (cosines / TEMPERATURE).softmax(dim=1)[:, 0]


def certainty(pixels: Pixels) -> Tensor:
    """Return 1 minus the entropy of the first cluster in bits, (n, S, S): 0 where it is a coin toss."""
    return 1 - binary_entropy(cluster(pixels))


def maker(network: EmbeddingModel, config: AugmentConfig, read: Callable[[Pixels], Tensor]) -> MapMaker:
    """Return the maker of maps (n, S, S) that `read` takes from a network's pixels.

    Raises:
        UserError: the network has no clusters.
    """
    head = network.head
    if not isinstance(head, DenseEmbedding) or head.to_clusters is None:
        raise UserError("This run has no clusters of pixels: its network has no model.head dense with num_clusters.")
    device = next(network.parameters()).device

    def make(reader: SplitReader, rows: Rows) -> Maps:
        @torch.no_grad()
        def maps(places: Places) -> Tensor:
            network.eval()
            images = eval_images(reader, rows[places], config).to(device)
            found = read(head.pixels(network.levels(images)))
            if found.shape[-1] != config.size:
                found = F.interpolate(found[:, None], (config.size, config.size), mode="bilinear")[:, 0]
            return found.float().cpu()

        return maps

    return make
