"""The dense head of local discrimination: a unit vector and a soft cluster for every pixel, summed up per image.

Chen et al. 2021, https://arxiv.org/abs/2108.09440. Pixels are never gathered over ranks: an image goes out as one row
of `LocalLayout`, the unit vectors of its patches, its region vectors and the entropy of its clusters.

Legend: B images, H x W pixels, G x G patches, d embedding channels, K clusters, D = G^2 d + K d + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.backbones.initialise import kaiming_convolutions
from trainer.backbones.norm import NormFactory
from trainer.heads.decoder import Decoder, conv_norm_relu
from trainer.heads.embedded import Embedded, EmbeddingHead


class Pixels(NamedTuple):
    """Unit vectors (B, d, H, W), and clusters (B, K, H, W) that sum to 1 over K; None for K = 0."""

    vectors: Tensor
    clusters: Tensor | None


class Parts(NamedTuple):
    """Of each image: patches (B, G^2, d) and regions (B, K, d), unit rows; mean entropy of its clusters (B,), bits; the
    map of its first cluster (B, S^2), where a critic of shapes is to see it, else (B, 0)."""

    patches: Tensor
    regions: Tensor
    entropy: Tensor
    shape: Tensor


@dataclass(frozen=True)
class LocalLayout:
    """Where in the D columns of an image's row its parts lie."""

    grid: int = 8
    width: int = 32
    num_clusters: int = 16
    shape_side: int = 0

    @property
    def num_dims(self) -> int:
        """D."""
        return (self.grid**2 + self.num_clusters) * self.width + 1 + self.shape_side**2

    def pack(self, parts: Parts) -> Tensor:
        """Return rows (B, D)."""
        patches, regions, entropy, shape = parts
        return torch.cat([patches.flatten(1), regions.flatten(1), entropy[:, None], shape], dim=1)

    def unpack(self, rows: Tensor) -> Parts:
        """Return the parts of rows (B, D)."""
        widths = [self.grid**2 * self.width, self.num_clusters * self.width, 1, self.shape_side**2]
        patches, regions, entropy, shape = rows.split(widths, dim=1)
        return Parts(
            patches.unflatten(1, (self.grid**2, self.width)),
            regions.unflatten(1, (self.num_clusters, self.width)),
            entropy[:, 0],
            shape,
        )


class DenseEmbedding(EmbeddingHead):
    """Levels -> `Embedded` whose vectors are rows of `layout`. Float32 behind the convolutions, under autocast too.

    Clusters are sigmoids divided by their sum, not a softmax. `spread` above 0 normalises what goes into the sigmoids,
    as the network normalises, and starts it at that deviation: so a cluster does not become empty, where sigmoids have
    no slope, because a critic liked it better for a while. 0 is as published. `features` (B, d) are the mean of the
    patches. There is no dropout and nothing to grow. Raises ValueError for several branches of a gate.
    """

    def __init__(
        self,
        level_channels: Sequence[int],
        make_norm: NormFactory,
        grid: int = 8,
        width: int = 32,
        num_clusters: int = 16,
        shape_side: int = 0,
        num_branches: int = 1,
        spread: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if shape_side and not num_clusters:
            raise ValueError("shapes are those of the first cluster: there must be clusters")
        if spread < 0:
            raise ValueError(f"spread is a standard deviation, or 0 for none, got {spread}")
        if num_branches > 1:
            raise ValueError("a dense head sees one branch; use one mask")
        self.layout = LocalLayout(grid, width, num_clusters, shape_side)
        self.num_features, self.num_dims, self.dropout = width, self.layout.num_dims, 0.0
        self.embedding = nn.Identity()
        self.decoder = Decoder(level_channels, make_norm)
        shared = self.decoder.out_channels
        self.to_vectors = _branch(shared, width, make_norm)
        self.to_clusters = _branch(shared, num_clusters, make_norm) if num_clusters else None
        kaiming_convolutions(self, seed, "dense")
        if spread > 0 and self.to_clusters is not None:
            self.to_clusters.append(_spread_out(make_norm(num_clusters), spread))

    def pixels(self, levels: Sequence[Tensor]) -> Pixels:
        """Return what every pixel is."""
        shared = self.decoder(levels)
        vectors = F.normalize(self.to_vectors(shared).float(), dim=1)
        if self.to_clusters is None:
            return Pixels(vectors, None)
        raw = torch.sigmoid(self.to_clusters(shared).float())
        return Pixels(vectors, raw / (raw.sum(dim=1, keepdim=True) + 1e-9))

    def forward(self, branches: Sequence[Sequence[Tensor]], keep: Tensor | None = None) -> Embedded:
        """Embed the levels."""
        (levels,) = branches
        parts = summed_up(self.pixels(levels), self.layout.grid, self.layout.shape_side > 0)
        return Embedded(self.layout.pack(parts), F.normalize(parts.patches.mean(dim=1), dim=1), None)


def _branch(in_channels: int, out_channels: int, norm: NormFactory) -> nn.Sequential:
    last = nn.Conv2d(out_channels, out_channels, 3, padding=1)
    return nn.Sequential(conv_norm_relu(in_channels, out_channels, norm), last)


def _spread_out(norm: nn.Module, spread: float) -> nn.Module:
    """Return a norm whose outputs start with that standard deviation."""
    nn.init.constant_(norm.get_parameter("weight"), spread)
    return norm


def summed_up(pixels: Pixels, grid: int, with_shape: bool = False) -> Parts:
    """Return the parts of images from their pixels.

    A region's vector is the mean of the pixels' vectors, weighted by its cluster: one contraction over pixels, where
    the product (B, K, d, H, W) would take 8.2 GB for a batch of 20 images of 448 pixels.
    """
    vectors, clusters = pixels
    patches = F.normalize(F.adaptive_avg_pool2d(vectors, grid).flatten(2).mT, dim=2)
    none = vectors.new_zeros(len(vectors), 0)
    if clusters is None:
        return Parts(patches, none[:, :, None].expand(-1, -1, vectors.shape[1]), vectors.new_zeros(len(vectors)), none)
    weighted = clusters.flatten(2) @ vectors.flatten(2).mT / clusters[0, 0].numel()
    entropy = binary_entropy(clusters).mean(dim=(1, 2, 3))
    return Parts(patches, F.normalize(weighted, dim=2), entropy, clusters[:, 0].flatten(1) if with_shape else none)


def binary_entropy(probabilities: Tensor) -> Tensor:
    """Return -p log2 p - (1 - p) log2 (1 - p) in bits, 0 at 0 and at 1, of a tensor of any shape."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    return -(p * p.log2() + (1 - p) * (1 - p).log2())
