"""Configuration -> network: the tables of backbones, gates and heads, and what joins one of each.

A new one is a file and a line here; how the arguments of an entry are checked is in launch/parts.py.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_shards.errors import UserError
from launch.config import RunConfig
from launch.parts import constructed, entry
from trainer import distributed, weights
from trainer.backbones import from_monai, from_timm
from trainer.backbones.backbone import Backbone
from trainer.backbones.googlenet import GoogLeNet
from trainer.backbones.resnet import ResNet
from trainer.backbones.small import SmallResNet
from trainer.backbones.vgg import VGG
from trainer.heads import gate
from trainer.heads.dense import DenseEmbedding, LocalLayout
from trainer.heads.embedded import EmbeddingHead
from trainer.heads.features import PooledFeatures
from trainer.heads.gate import Gate
from trainer.heads.linear import LinearEmbedding
from trainer.heads.mask import MaskHead
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition

log = logging.getLogger(__name__)

# What ends in a colon names a library: a function there turns the rest of the name into a constructor.
BACKBONES: dict[str, Callable[..., Any]] = {
    "resnet18": partial(ResNet, depth=18),
    "resnet34": partial(ResNet, depth=34),
    "resnet50": partial(ResNet, depth=50),
    "se_resnet50": partial(ResNet, depth=50, se=True),
    "googlenet": GoogLeNet,
    "small_resnet": SmallResNet,
    "vgg16": VGG,
    "monai:": from_monai.by_name,
    "timm:": from_timm.by_name,
}
GATES: dict[str, Callable[..., Gate | None]] = {
    "convolutions": gate.convolutions,
    "stage": gate.stage,
    "none": gate.none,
}
HEADS: dict[str, Callable[..., EmbeddingHead]] = {
    "linear": LinearEmbedding,
    "features": PooledFeatures,
    "dense": DenseEmbedding,
    "mask": MaskHead,
}


def check(config: RunConfig) -> None:
    """Raise UserError for an unknown part or argument of the network, before anything is started."""
    settings = config.model
    entry(BACKBONES, settings.backbone, "model.backbone")
    entry(GATES, settings.gate, "model.gate")
    entry(HEADS, settings.head, "model.head")


def from_random(config: RunConfig) -> RunConfig:
    """Return a configuration whose network starts from no file: for weights that are put in afterwards, all of them."""
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": "random"})})


def model(config: RunConfig, device: torch.device | str = "cpu") -> EmbeddingModel:
    """Return the network with its start weights."""
    settings = config.model
    backbone = constructed(
        "model.backbone",
        entry(BACKBONES, settings.backbone, "model.backbone"),
        in_channels=config.data.channels,
        seed=config.seed,
        sync_norm=distributed.SynchronisedBatchNorm2d,
    )
    smallest = getattr(backbone, "smallest_px", 1)
    if config.data.image_size < smallest:
        raise UserError(
            f"data.image_size {config.data.image_size} is less than the {smallest} that {settings.backbone.name} needs"
            " for one pixel in its last level: use larger images, or fewer model.backbone.levels"
        )
    if config.train.checkpoint_activations and not backbone.enterable:
        raise UserError(f"train.checkpoint_activations: a {settings.backbone.name} cannot be entered at a level")
    backbone.recompute = config.train.checkpoint_activations
    mask = constructed("model.gate", entry(GATES, settings.gate, "model.gate"), backbone, seed=config.seed)
    head = _head(config, backbone, 1 if mask is None else len(mask.branches))
    network = EmbeddingModel(backbone, head, mask, settings.freeze_backbone)
    if settings.weights != "random":
        load_weights(network, Path(settings.weights), settings.backbone.name, settings.weights_of == "backbone")
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    return network.to(device).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def _head(config: RunConfig, backbone: Backbone, num_branches: int) -> EmbeddingHead:
    """Return the head; its constructor says what it wants to know."""
    settings = config.model
    make = entry(HEADS, settings.head, "model.head")
    known = {
        "in_channels": backbone.channels[-1],
        "level_channels": backbone.channels,
        "make_norm": backbone.make_norm,
        "num_dims": settings.num_dims,
        "image_size": config.data.image_size,
        "shape_side": _shape_side(config),
        "num_branches": num_branches,
        "seed": config.seed,
        "widths": SubspacePartition.equal(settings.num_dims, settings.num_subspaces).widths,
    }
    wanted = inspect.signature(make).parameters
    head: EmbeddingHead = constructed("model.head", make, **{name: known[name] for name in wanted if name in known})
    return head


def load_weights(network: EmbeddingModel, path: Path, name: str, only_backbone: bool) -> None:
    """Start the network, whose backbone is called `name`, from a file; nothing in it is executed.

    Raises:
        UserError: no such file, not a file of weights, or of another architecture.
    """
    if not path.is_file():
        raise UserError(
            f"model.weights: there is no file {path}; give a path, or 'random' to start from random weights"
        )
    try:
        log.info("%s", weights.load(network, path, name, only_backbone))
    except UserError as error:
        raise UserError(f"model.weights: {error}") from None


def local_layout(config: RunConfig) -> LocalLayout | None:
    """Return what the rows of a dense head hold; None for other heads."""
    head = config.model.head
    if head.name != "dense":
        return None
    names = {field.name for field in fields(LocalLayout)}
    given = {name: value for name, value in head.arguments.items() if name in names}
    return LocalLayout(**given, shape_side=_shape_side(config))


def _shape_side(config: RunConfig) -> int:
    """Return the side of the maps that a critic of shapes is to see; 0 without one."""
    local = config.objective.local
    return config.data.image_size if local is not None and local.shape is not None else 0


def num_dims(config: RunConfig) -> int:
    """Return the width of what the head gives for an image."""
    layout = local_layout(config)
    if layout is not None:
        return layout.num_dims
    return config.data.image_size**2 if config.model.head.name == "mask" else config.model.num_dims
