"""The head that gives a mask: a decoder, two convolutions and one to a single channel, sigmoid.

The network that a pretrained encoder is transferred to (Chen et al. 2021, https://arxiv.org/abs/2108.09440).

Legend: B images, S x S pixels of the image, h_0 x w_0 those of the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.backbones.initialise import kaiming_convolutions
from trainer.backbones.norm import NormFactory
from trainer.heads.decoder import Decoder, conv_norm_relu
from trainer.heads.embedded import Embedded, EmbeddingHead


class MaskHead(EmbeddingHead):
    """Levels -> `Embedded` whose vectors (B, S^2) are probabilities of the foreground, row by row, in float32.

    Where the finest level is coarser than the image, logits are enlarged. There is no dropout and nothing to grow.
    Raises ValueError for several branches of a gate.
    """

    def __init__(
        self,
        level_channels: Sequence[int],
        make_norm: NormFactory,
        image_size: int,
        num_branches: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_branches > 1:
            raise ValueError("a mask head sees one branch; use one mask of attention")
        self.image_size, self.num_dims, self.dropout = image_size, image_size**2, 0.0
        self.embedding = nn.Identity()
        self.decoder = Decoder(level_channels, make_norm)
        width = self.decoder.out_channels // 2
        self.num_features = width
        self.refine = nn.Sequential(
            conv_norm_relu(self.decoder.out_channels, width, make_norm), conv_norm_relu(width, width, make_norm)
        )
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        kaiming_convolutions(self, seed, "mask")

    def forward(self, branches: Sequence[Sequence[Tensor]], keep: Tensor | None = None) -> Embedded:
        """Return the probabilities of the one branch's levels."""
        (levels,) = branches
        fine = self.refine(self.decoder(levels))
        logits = self.last(fine).float()
        if logits.shape[-1] != self.image_size:
            logits = F.interpolate(logits, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        features = F.normalize(fine.float().mean(dim=(2, 3)), dim=1)
        return Embedded(torch.sigmoid(logits).flatten(1), features, None)
