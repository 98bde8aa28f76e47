"""Backbones of timm by name: `timm:resnet50`. Needs the extra `[timm]`, and a torchvision that fits the torch there is.

timm takes a network apart itself (`features_only`) and says what its levels are. Networks whose levels are maps are
taken, convolutional ones in the main; those with parameters that only timm can draw (positions of a transformer) are
not, since a start must be a function of the seed. timm's defaults drop nothing at random. Parameters keep timm's names,
but for `stages.0` and the like, which timm joins to `stages_0` when it cuts: `dialects` say so to `trainer.weights`.

Source: Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models

Legend: B batch, C channels, H and W pixels, C_i and s_i channels and stride of level i.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn

from data_shards import keyed
from data_shards.errors import UserError, nearest_of
from trainer.backbones.backbone import Backbone
from trainer.backbones.foreign import Dialect, draw, probe, replace_norms
from trainer.backbones.norm import NormFactory, norm_factory


def by_name(model: str) -> Callable[..., nn.Module]:
    """Return the constructor of timm's network of that name; the other arguments are those of `TimmBackbone`.

    Raises:
        UserError: timm is not there, does not work, or has no such network; nothing is looked up on a network.
    """
    names = imported().list_models()
    if model not in names:
        raise UserError(f"no network '{model:.80}' of timm{nearest_of(model, names)}; it lists {len(names)}")
    return partial(TimmBackbone, model)


def imported() -> Any:
    """Return timm, or raise a UserError that says in one sentence why it cannot be had."""
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise UserError(f"timm needs '{error.name}', which is not installed") from error
        raise UserError("timm is not installed; pip install 'subspace-trainer[timm]'") from error
    except Exception as error:  # a torchvision for another torch raises RuntimeError, or what its libraries raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"timm does not import here ({reason:.160}): it needs a torchvision that fits torch {torch.__version__}"
        ) from error


class TimmBackbone(Backbone):
    """(B, C, H, W) -> `levels` levels (B, C_i, H / s_i, W / s_i), timm's own choice if not given.

    Raises:
        UserError: unknown norm, a number of levels that the network does not have, or a network that does not fit in
            here: levels that are no maps, parameters behind the last one, or such as are not drawn by key.
    """

    enterable = False  # timm's taps sit inside

    def __init__(
        self,
        model: str,
        levels: int | None = None,
        norm: Literal["frozen", "batch", "group", "sync"] = "frozen",
        in_channels: int = 3,
        seed: int = 0,
        sync_norm: NormFactory | None = None,
    ) -> None:
        super().__init__()
        net = _created(model, levels, in_channels, seed)
        self.channels = tuple(net.feature_info.channels())
        self.strides = tuple(net.feature_info.reduction())
        self.smallest_px = self.strides[-1]
        self.in_channels = in_channels
        _refuse_unfit(model, net, self.channels, in_channels)
        self.make_norm = norm_factory(norm, sync_norm)
        replace_norms(net, self.make_norm)
        try:
            draw(net, seed)
        except UserError as error:
            raise UserError(f"timm's {model} cannot be used: {error}") from None
        self.net = net
        named = [name for name, _ in self.named_modules()]
        self.dialects = (_dialect([name for name, _ in net.named_children()]),)
        taps = (f"net.{name.replace('.', joint)}" for name in net.feature_info.module_name() for joint in "._")
        self.parts = tuple(tap for tap in taps if tap in named)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the levels, finest first."""
        return list(self.net(images))


def _created(model: str, levels: int | None, in_channels: int, seed: int) -> Any:
    """Let timm build its network; what it draws from torch's stream is not seen outside, nor kept."""
    wanted = {} if levels is None else {"out_indices": tuple(range(levels))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed.generator(seed, "init", "timm").integers(1 << 62)))
        try:
            return imported().create_model(model, pretrained=False, features_only=True, in_chans=in_channels, **wanted)
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(f"timm's {model} gives no {levels or 'such'} levels ({reason:.160})") from error


def _refuse_unfit(model: str, net: nn.Module, channels: tuple[int, ...], in_channels: int) -> None:
    try:
        found = probe(net, in_channels)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"timm's {model} cannot be used: it takes no image of any size ({reason:.160})") from error
    if any(len(shape) != 3 or shape[0] != width for shape, width in zip(found.shapes, channels, strict=True)):
        raise UserError(f"timm's {model} cannot be used: its levels are no maps (C, H, W)")
    if found.idle:
        raise UserError(f"timm's {model} cannot be used: '{found.idle[0]}' has no part in its last level")


def _dialect(children: list[str]) -> Dialect:
    """Return how `net.stages_0.x` becomes `stages.0.x`, timm's name before it cuts, for children that may be joined."""
    split = [name.rpartition("_") for name in children if "_" in name]
    heads = [first for first, _, _ in split]
    joined = [(first, last) for first, _, last in split if last.isdigit() or heads.count(first) > 1]  # no conv_stem
    return tuple((rf"^net\.{re.escape(first)}_{re.escape(last)}\.", f"net.{first}.{last}.") for first, last in joined)
