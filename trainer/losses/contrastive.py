"""Contrastive losses on cosines, in the three forms of histology retrieval and of attention-based ensembles.

They differ in what is hinged and in what is averaged, and go by one name elsewhere:

* hinge_neg_mean_pos: of each anchor, mean over negatives of [s - m]+ minus mean over positives of s;
* hinge_pos_mean_neg: of each anchor, mean over positives of [m - s]+ plus mean over negatives of s;
* squared_pos_hinge_neg: half the mean of (1 - s)^2 over all positive pairs, plus half the mean of [s - m]+ over the
  negative pairs inside the margin.

The first two are those of https://github.com/EasonYang1996/DML_HistoImgRetrieval (where an anchor may be its own
positive), the third is how https://github.com/pierre-jacob/ICCV2019-Horde reads Kim et al. 2018,
https://arxiv.org/abs/1804.00382. That paper's own form, by distances, D^2 for positives and [M - D^2]+ for negatives,
is twice the first one with m = 1 - M / 2, but for a constant.

Legend: N vectors of unit length, d their width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from trainer.miners import pair_masks

Form = Literal["hinge_neg_mean_pos", "hinge_pos_mean_neg", "squared_pos_hinge_neg"]


def contrastive(
    vectors: Tensor,
    labels: Tensor,
    tuples: tuple[Tensor, ...] | None = None,
    *,
    margin: float = 0.5,
    form: Form = "hinge_neg_mean_pos",
) -> Tensor:
    """Return the loss () of unit `vectors` (N, d) with `labels` (N,); all pairs are looked at, `tuples` are not used.

    Anchors without a positive or without a negative do not count. Where none counts, the result is a zero with a graph.
    """
    positives, negatives = pair_masks(labels)
    cosines = vectors @ vectors.T
    if form == "squared_pos_hinge_neg":
        inside = negatives & (cosines.detach() > margin)
        pull = ((1 - cosines).square() * positives).sum() / positives.sum().clamp(min=1)
        push = (F.relu(cosines - margin) * inside).sum() / inside.sum().clamp(min=1)
        return (pull + push) / 2
    if form == "hinge_neg_mean_pos":
        pull, push = -cosines, F.relu(cosines - margin)
    else:
        pull, push = F.relu(margin - cosines), cosines
    own = _row_means(pull, positives) + _row_means(push, negatives)
    counted = positives.any(dim=1) & negatives.any(dim=1)
    return (own * counted).sum() / counted.sum().clamp(min=1)


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
