"""Where coarse maps come from: the attention of an embedding, Grad-CAM of a classification network.

A coarse map is a thousandth of an image: those of a split are kept, and brought to full size a few at a time.

Legend: N rows, h x w pixels of the last level, C classes, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from data_shards.augment import AugmentConfig
from data_shards.errors import UserError
from data_shards.loader import eval_images
from data_shards.reader import SplitReader
from trainer.model import EmbeddingModel
from trainer.segmentation.grad_cam import class_maps
from trainer.segmentation.maps import Scale, full_size
from trainer.segmentation.protocol import BLOCK, MapMaker, Maps, Rows

Coarse = Callable[[SplitReader, Rows], Tensor]  # rows (N,) -> (N, h, w) float32
Target = Literal["predicted", "label"]


def attention(network: EmbeddingModel, config: AugmentConfig) -> Coarse:
    """Return the source of the gate's maps, of several the mean; it raises UserError for a network without one."""

    @torch.no_grad()
    def of(images: Tensor, labels: Tensor) -> Tensor:
        maps = network(images).maps
        if maps is None:
            raise UserError("This run has no attention maps: its network has no gate (model.gate).")
        return maps.float().mean(dim=1)

    return _coarse(network, config, of)


def classification(
    network: EmbeddingModel, weight: Tensor, bias: Tensor, config: AugmentConfig, target: Target = "predicted"
) -> Coarse:
    """Return the source of Grad-CAM maps of the predicted class, or of the labelled one."""

    def of(images: Tensor, labels: Tensor) -> Tensor:
        return class_maps(network, images, weight, bias, labels if target == "label" else None)

    return _coarse(network, config, of)


def _coarse(network: EmbeddingModel, config: AugmentConfig, of: Callable[[Tensor, Tensor], Tensor]) -> Coarse:
    """Run `of(images, labels) -> (n, h, w)` over rows in blocks, in evaluation mode, on the network's device."""
    device = next(network.parameters()).device

    def coarse(reader: SplitReader, rows: Rows) -> Tensor:
        parts = []
        network.eval()
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            images = eval_images(reader, block, config).to(device)
            parts.append(of(images, torch.from_numpy(reader.labels[block].astype("int64"))).cpu())
        return torch.cat(parts)

    return coarse


def at_full_size(coarse: Coarse, size: int, scale: Scale) -> MapMaker:
    """Return the maker of maps (n, S, S) from a source of coarse ones, computed once per set of rows."""

    def make(reader: SplitReader, rows: Rows) -> Maps:
        kept = coarse(reader, rows)
        return lambda places: full_size(kept[places], size, scale)

    return make
