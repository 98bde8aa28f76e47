"""image -> levels -> embedding: a backbone, a gate in or behind it, and a head; nothing about ranks or losses.

Legend: B images, C_i, h_i, w_i shape of level i, D embedding width, M branches of the gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.backbones.backbone import Backbone
from trainer.heads.embedded import Embedded, EmbeddingHead
from trainer.heads.gate import Gate


class EmbeddingModel(nn.Module):
    """Images (B, C, H, W), and a dropout mask (B, F) or None, -> `Embedded`.

    `freeze_backbone` keeps its weights and statistics as they are; gate and head are trained.
    """

    def __init__(
        self, backbone: Backbone, head: EmbeddingHead, gate: Gate | None = None, freeze_backbone: bool = False
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.freeze_backbone = freeze_backbone
        backbone.requires_grad_(not freeze_backbone)
        self.gate = gate
        self.head: EmbeddingHead = head

    def train(self, mode: bool = True) -> EmbeddingModel:
        """Go to training mode or leave it; a frozen backbone never enters it, so that its statistics stay too."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Embedded:
        return self.embed(self.levels(images), keep)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the levels that all branches share: up to the gate, or all of them."""
        if self.gate is not None and self.gate.inside:
            return self.backbone.up_to(self.gate.level, images)
        levels: list[Tensor] = self.backbone(images)
        return levels

    def embed(self, levels: Sequence[Tensor], keep: Tensor | None = None) -> Embedded:
        """Return the embedding of shared levels."""
        if self.gate is None:
            return self.head([levels], keep)  # type: ignore[no-any-return]
        masks = self.gate(levels[-1])
        shared, last = levels[:-1], levels[-1]
        found = self.head([[*shared, *self.backbone.beyond(self.gate.level, last * mask)] for mask in masks], keep)
        maps = torch.cat([mask.mean(dim=1, keepdim=True) for mask in masks], dim=1)
        return found._replace(maps=maps)  # type: ignore[no-any-return]

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
