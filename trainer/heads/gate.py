"""Attention gates: masks that are multiplied onto a level of the backbone, whose remainder then runs once per mask.

    A_m(x) = activation(branch_m(base(x)))        x_m = x * A_m(x)        m = 1 ... M

One part for three published ones. Attention of dynamic subspace learners: after the last level, one channel, M = 1
(Adiga et al. 2022, https://arxiv.org/abs/2206.09068). Mixed attention of histology retrieval: a copy of the last stage
makes a mask of all channels for the level before it, M = 1 (https://github.com/EasonYang1996/DML_HistoImgRetrieval).
Attention-based ensemble: the same for M learners (Kim et al. 2018,
https://arxiv.org/abs/1804.00382). Nothing is added to x, and a mask need not sum to one.

Legend: B batch, C channels, h and w pixels of the gated level, M branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_shards import keyed
from data_shards.errors import UserError
from trainer.backbones.backbone import Backbone
from trainer.backbones.initialise import torch_default

Channels = Literal["one", "all"]
Activation = Literal["sigmoid", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "relu": F.relu}


class Gate(nn.Module):
    """(B, C, h, w) -> M masks (B, 1 or C, h, w). The base runs once, whatever M is.

    `level` counts from 0: where in the backbone the masks are laid on; `inside` says that there are levels behind it.
    """

    def __init__(
        self, level: int, inside: bool, base: nn.Module, branches: Sequence[nn.Module], activation: Activation
    ) -> None:
        super().__init__()
        self.level, self.inside, self.activation = level, inside, activation
        self.base = base
        self.branches = nn.ModuleList(branches)

    def forward(self, level: Tensor) -> list[Tensor]:
        """Return the masks."""
        shared = self.base(level)
        return [ACTIVATIONS[self.activation](branch(shared)) for branch in self.branches]


def convolutions(
    backbone: Backbone,
    level: int | None = None,
    hidden: tuple[int, int] = (128, 32),
    channels: Channels = "one",
    branches: int = 1,
    activation: Activation = "sigmoid",
    seed: int = 0,
) -> Gate:
    """Return a gate of three 3x3 convolutions, the last of which is a branch's own.

    `level` counts from 1, the last one when not given. Raises UserError where the backbone has no such level.
    """
    tap = _tap(backbone, level, len(backbone.channels))
    width = backbone.channels[tap]
    base = nn.Sequential()
    base.add_module("conv1", nn.Conv2d(width, hidden[0], 3, padding=1))
    base.add_module("relu1", nn.ReLU())
    base.add_module("conv2", nn.Conv2d(hidden[0], hidden[1], 3, padding=1))
    base.add_module("relu2", nn.ReLU())
    torch_default(base, seed, "attention")
    made = []
    for m in range(branches):
        branch = nn.Sequential()
        branch.add_module("conv3", nn.Conv2d(hidden[1], 1 if channels == "one" else width, 3, padding=1))
        torch_default(branch, seed if m == 0 else _seed_of(seed, m), "attention")
        made.append(branch)
    return Gate(tap, tap + 1 < len(backbone.channels), base, made, activation)


def stage(
    backbone: Backbone,
    level: int | None = None,
    channels: Channels = "all",
    branches: int = 1,
    activation: Activation = "sigmoid",
    seed: int = 0,
) -> Gate:
    """Return a gate whose base is another stage like the one after its level, without its stride; a branch is a 1x1
    convolution and a norm.

    `level` counts from 1, the last but one when not given. Raises UserError where there is no such level, or no stage
    after it, or none that can be had twice.
    """
    widths = backbone.channels
    tap = _tap(backbone, level, len(widths) - 1)
    base = backbone.same_size_stage(tap + 1, seed)
    width = 1 if channels == "one" else widths[tap]
    made = [backbone.pointwise(widths[tap + 1], width, _seed_of(seed, m)) for m in range(branches)]
    return Gate(tap, True, base, made, activation)


def none(backbone: Backbone, seed: int = 0) -> None:
    """Return no gate."""


def _tap(backbone: Backbone, level: int | None, last: int) -> int:
    """Return the level counted from 0, at most `last` counted from 1, which is the default."""
    if last < 1:
        raise UserError("a gate of a stage needs one behind its level; the backbone has one level in all")
    level = last if level is None else level
    if not 1 <= level <= last:
        raise UserError(f"model.gate.level must be 1 to {last} with this backbone, got {level}")
    if level < len(backbone.channels) and not backbone.enterable:
        raise UserError(f"a {type(backbone).__name__} cannot be entered at a level; put the gate behind its last one")
    return level - 1


def _seed_of(seed: int, branch: int) -> int:
    """Return the seed of a branch, so that masks do not start alike."""
    return keyed.key(seed, "branch", branch) >> 1
