"""image -> levels -> embedding: a backbone and a head, and nothing about ranks, partitions or losses.

Legend: B images, D embedding width, F feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.heads.embedded import Embedded, EmbeddingHead


class EmbeddingModel(nn.Module):
    """A backbone and a head: images (B, C, H, W), and a dropout mask (B, F) or None, -> `Embedded`."""

    def __init__(self, backbone: nn.Module, head: EmbeddingHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: EmbeddingHead = head

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Embedded:
        return self.head(self.backbone(images), keep)

    @property
    def rows(self) -> dict[str, nn.Parameter]:
        """The parameters that have one row per embedding dimension, by name: what growth permutes and resets."""
        return {f"head.embedding.{name}": parameter for name, parameter in self.head.embedding.named_parameters()}


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@torch.no_grad()
def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold a NaN or an infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
