"""The losses of local discrimination: of patches against all other patches, of regions against each other, and Dice.

Chen et al. 2021, https://arxiv.org/abs/2108.09440; instance discrimination without a memory is Ye et al. 2019,
"Unsupervised Embedding Learning via Invariant and Spreading Instance Feature", https://arxiv.org/abs/1904.03436.

Legend: N items of unit length, d their width, n images, K regions of each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def instance_loss(vectors: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the instance loss () of items (N, d) whose partner lies N / 2 further on.

        P_ij = softmax over j != i of <x_i, x_j> / T        -1/N sum_i [ log P_i,partner + sum_others log(1 - P_ij) ]

    The second factor of every inner product is held still, as published. log(1 - P) is taken from log P, so that a
    probability of nearly 1 does not make it infinite.
    """
    count = len(vectors)
    itself = torch.eye(count, dtype=torch.bool, device=vectors.device)
    logits = (vectors @ vectors.detach().T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(count, device=vectors.device).roll(-(count // 2))
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    pull = log_p.gather(1, partner[:, None])[:, 0]
    left_out = itself.clone().scatter_(1, partner[:, None], True)
    push = log_one_minus_exp(log_p.masked_fill(left_out, -torch.inf)).sum(dim=1)
    return -(pull + push).mean()


def log_one_minus_exp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x <= 0, 0 at minus infinity, without losing digits at either end (Maechler 2012,
    https://cran.r-project.org/web/packages/Rmpfr/vignettes/log1mexp-note.pdf); x is kept below -1e-7."""
    x = x.clamp(max=-1e-7)
    near = x > -math.log(2)
    by_expm1 = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, by_expm1, by_log1p)


def region_loss(regions: Tensor, temperature: float = 0.2) -> Tensor:
    """Return the region loss () of unit region vectors (n, K, d).

    Region k of every image should lie nearest to the prototype of all k-th regions, the mean of theirs made unit;
    gradients flow through prototypes too. It starts near ln K.
    """
    prototypes = F.normalize(regions.mean(dim=0), dim=1)
    logits = regions @ prototypes.T / temperature
    wanted = torch.arange(regions.shape[1], device=regions.device).expand(len(regions), -1)
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def soft_dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Return -2 sum(p g) / (sum g + sum p + 1) () of a whole batch; where no mask has foreground, of the background."""
    masks = masks.to(probabilities.dtype)
    empty = masks.sum() == 0
    p, g = torch.where(empty, 1 - probabilities, probabilities), torch.where(empty, 1 - masks, masks)
    return -2 * (p * g).sum() / (g.sum() + p.sum() + 1)
