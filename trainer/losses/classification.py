"""The classification network: a linear classifier on the vectors and its cross-entropy.

The baseline of the ADSL tables: a network trained to name classes, whose penultimate features serve as the embedding.
Its vectors are the raw features (`objective.normalize: false`); retrieval normalises them as it does all others.

Legend: B batch, D width of the vectors, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards import keyed
from trainer.backbones.initialise import fill_uniform


class Classification(nn.Module):
    """(vectors (B, D), labels (B,)) -> (); `weight` (C, D) and `bias` (C,) are learned, drawn as torch does by default.

    `label_smoothing` in [0, 1) spreads that much of the target over all classes. Raises ValueError outside.
    """

    def __init__(self, num_dims: int, num_classes: int, label_smoothing: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.weight = nn.Parameter(torch.empty(num_classes, num_dims))
        self.bias = nn.Parameter(torch.empty(num_classes))
        bound = 1.0 / math.sqrt(num_dims)
        fill_uniform(self.weight, bound, keyed.generator(seed, "init", "classifier"))
        fill_uniform(self.bias, bound, keyed.generator(seed, "init", "classifier bias"))

    def forward(self, vectors: Tensor, labels: Tensor, tuples: tuple[Tensor, ...] | None = None) -> Tensor:
        """Return the mean cross-entropy; `tuples` are not used."""
        logits = F.linear(vectors, self.weight, self.bias)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
