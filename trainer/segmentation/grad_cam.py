"""Grad-CAM at the last level before the gate, or at all the last: of a class, and of the likeness of two images.

    alpha_c = mean over pixels of d score / d A_c        map = ReLU(sum_c alpha_c A_c)

Selvaraju et al. 2017, "Grad-CAM" (https://arxiv.org/abs/1610.02391), computed by captum. For an embedding the score is
the cosine to another image's vector, which is held still (Chen et al. 2020, "Adapting Grad-CAM for Embedding Networks",
https://arxiv.org/abs/2001.06538): of the whole, the mean cosine of the blocks, and of each subspace alone.

A cosine has no slope towards its own maximum: for two equal images the map is empty, and it fades as they become alike.
With `hold_norms` the lengths of the vectors count as constants, and the map shows which pixels the inner product
is made of instead (Stylianou et al. 2019, "Visualizing Deep Similarity Networks", https://arxiv.org/abs/1901.00536; for
mean pooling and a linear layer the two agree but for the ReLU and the layer's bias).

Legend: N images, C classes, D embedding width, K subspaces, T scores, h x w pixels of the last level.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition

Score = Callable[[Tensor], Tensor]  # raw vectors (N, D) -> scores (N, T)


class _Scored(nn.Module):
    """images -> scores (N, T), with the last level passing through `last`, where captum listens."""

    def __init__(self, network: EmbeddingModel, score: Score) -> None:
        super().__init__()
        self.network, self.score, self.last = network, score, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            *levels, last = self.network.levels(images)
        # gradients are wanted from here on only: the graph of the backbone would be for nothing
        return self.score(self.network.embed([*levels, self.last(last.requires_grad_())]).vectors.float())


def grad_cam(network: EmbeddingModel, images: Tensor, score: Score, targets: Tensor) -> Tensor:
    """Return (N, h, w) maps >= 0 of one score per image, `targets` (N,) says which; evaluation mode, no side effect."""
    from captum.attr import LayerGradCam

    scored = _Scored(network, score)
    was_training = network.training
    network.eval()
    try:
        with torch.enable_grad():
            found = LayerGradCam(scored, scored.last).attribute(images, targets, relu_attributions=True)
    finally:
        network.train(was_training)
    return found.detach()[:, 0]


def class_maps(
    network: EmbeddingModel, images: Tensor, weight: Tensor, bias: Tensor, targets: Tensor | None = None
) -> Tensor:
    """Return Grad-CAM (N, h, w) of a class of the linear classifier weight (C, D), bias (C,) on the raw vectors.

    `targets` (N,) int64 are the classes; None takes the one that the network gives the highest logit.
    """

    def logits(vectors: Tensor) -> Tensor:
        return vectors @ weight.T + bias

    if targets is None:
        with torch.no_grad():
            targets = logits(_vectors(network, images)).argmax(dim=1)
    return grad_cam(network, images, logits, targets.to(images.device))


def similarities(partition: SubspacePartition, vectors: Tensor, others: Tensor, hold_norms: bool = False) -> Tensor:
    """Return cosines (N, 1 + K) of raw vectors (N, D) and (N, D), row by row: of the whole, then of each subspace."""
    cosines = []
    for k, own in enumerate(partition.split(vectors)):
        held = own / own.norm(dim=1, keepdim=True).detach().clamp_min(1e-12)
        unit = held if hold_norms else partition.block(vectors, k)
        cosines.append((unit * partition.block(others, k)).sum(dim=1))
    blocks = torch.stack(cosines, dim=1)
    return torch.cat([blocks.mean(dim=1, keepdim=True), blocks], dim=1)


def similarity_maps(
    network: EmbeddingModel,
    partition: SubspacePartition,
    images: Tensor,
    others: Tensor,
    hold_norms: bool = False,
) -> tuple[Tensor, Tensor]:
    """Explain why `images` (N, ...) are like `others` (N, ...), pair by pair.

    Returns:
        maps (N, 1 + K, h, w) on `images`, and the cosines (N, 1 + K): of the whole, then of each subspace. For the maps
        on `others` swap the two.
    """
    with torch.no_grad():
        fixed = _vectors(network, others)
        cosines = similarities(partition, _vectors(network, images), fixed)

    def score(vectors: Tensor) -> Tensor:
        return similarities(partition, vectors, fixed, hold_norms)

    numbers = range(1 + partition.num_subspaces)
    maps = [grad_cam(network, images, score, torch.full((len(images),), t, device=images.device)) for t in numbers]
    return torch.stack(maps, dim=1), cosines


def _vectors(network: EmbeddingModel, images: Tensor) -> Tensor:
    """Return raw vectors (N, D) float32 in evaluation mode."""
    was_training = network.training
    network.eval()
    try:
        vectors: Tensor = network(images).vectors
        return vectors.float()
    finally:
        network.train(was_training)
