"""The divergence loss of an ensemble: learners are punished for seeing an image alike.

Kim et al. 2018, "Attention-based Ensemble for Deep Metric Learning", https://arxiv.org/abs/1804.00382.

Legend: B images, M learners, d width of a learner.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Pairs = Literal["same_image", "all"]


def divergence(learners: Sequence[Tensor], margin: float = 0.2, pairs: Pairs = "same_image") -> Tensor:
    """Return the mean of [s - margin]+ over cosines s of the vectors of different learners, M unit blocks (B, d).

    "same_image": of the same image, over images and over pairs of learners. "all": of any two images of the batch, over
    the pairs inside the margin (as https://github.com/pierre-jacob/ICCV2019-Horde has it). One learner gives 0.
    """
    if len(learners) < 2:
        return learners[0].sum() * 0
    couples = list(combinations(learners, 2))
    if pairs == "same_image":
        cosines = torch.stack([(one * other).sum(dim=1) for one, other in couples])
        return F.relu(cosines - margin).mean()
    active = F.relu(torch.stack([one @ other.T for one, other in couples]) - margin)
    return active.sum() / (active > 0).sum().clamp(min=1)
