"""Margin loss: positives closer than beta - alpha, negatives farther than beta + alpha.

Wu et al. 2017, "Sampling matters in deep embedding learning", https://arxiv.org/abs/1706.07567.

Legend: N vectors, d their width, T triplets, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def margin_loss(
    vectors: torch.Tensor,
    labels: torch.Tensor,
    triplets: Triplets,
    *,
    alpha: float = 0.2,
    beta: float | torch.Tensor = 1.2,
    nu: float = 0.0,
) -> torch.Tensor:
    """Return sum over triplets of [d_ap - beta + alpha]+ + [beta - d_an + alpha]+ + nu |beta|, per active term.

    `vectors` (N, d), `labels` (N,), `triplets` three (T,) index tensors (anchor, positive, negative), d_xy =
    sqrt(|x - y|^2 + 1e-8). `beta` is a number, a scalar tensor, or one value per class (C,), taken by the label of
    the anchor. Active terms are counted one by one, so a triplet counts 0, 1 or 2; the released code counts triplets
    on newer torch and terms on older. With no triplet, or none active, the result is a zero that still has a graph,
    so that every rank can run backward.
    """
    anchor, positive, negative = triplets
    d_ap = _distance(vectors[anchor], vectors[positive])
    d_an = _distance(vectors[anchor], vectors[negative])
    boundary = torch.as_tensor(beta, dtype=vectors.dtype, device=vectors.device)
    if boundary.ndim:
        boundary = boundary[labels[anchor]]
    pull = F.relu(d_ap - boundary + alpha)
    push = F.relu(boundary - d_an + alpha)
    total = pull.sum() + push.sum()
    if nu:
        total = total + nu * boundary.abs().expand_as(pull).sum()
    active = (pull > 0).sum() + (push > 0).sum()
    return total / active.clamp(min=1)


def _distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((x - y).square().sum(dim=1) + 1e-8).sqrt()
