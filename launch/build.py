"""Configuration -> parts: one literal table per seam, and the few functions that put the parts together.

A new backbone, head, loss, miner or growth rule is one file and one line here. The arguments of an entry are those of
its constructor, checked against the signature, so the constructor is the schema.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cluster.assignment import RepairRule
from cluster.controller import ControllerConfig
from cluster.growth import NoGrowth, PlateauGrowth
from cluster.plan import PlanConfig
from data_shards import keyed
from data_shards.augment import AugmentConfig
from data_shards.build import build as build_shards
from data_shards.errors import UserError
from data_shards.order import BatchRule, GlobalBatch
from data_shards.quarantine import TrainingReader
from data_shards.reader import ShardFolder, SplitReader, open_shards
from launch.config import Component, RunConfig
from launch.parts import constructed, entry
from trainer import distributed, weights
from trainer.backbones import from_monai, from_timm
from trainer.backbones.backbone import Backbone
from trainer.backbones.googlenet import GoogLeNet
from trainer.backbones.resnet import ResNet
from trainer.backbones.small import SmallResNet
from trainer.backbones.vgg import VGG
from trainer.engines.base import Engine
from trainer.engines.ddp import DDPEngine
from trainer.engines.deepspeed import DeepSpeedEngine, check_zero
from trainer.evaluate import EmbedOptions
from trainer.heads import gate
from trainer.heads.dense import DenseEmbedding, LocalLayout
from trainer.heads.embedded import EmbeddingHead
from trainer.heads.features import PooledFeatures
from trainer.heads.gate import Gate
from trainer.heads.linear import LinearEmbedding
from trainer.heads.mask import MaskHead
from trainer.loop import LoopOptions
from trainer.model import EmbeddingModel
from trainer.objectives.objective import Objective
from trainer.optim import OPTIMISERS, Rates, parameter_groups
from trainer.state import RunState
from trainer.subspaces.partition import SubspacePartition
from trainer.subspaces.saliency import TaylorSaliency
from trainer.validators import Overlaps, PretextLoss, Retrieval, Validator

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
ENGINES: dict[str, Callable[..., Engine]] = {"ddp": DDPEngine, "deepspeed": DeepSpeedEngine}


def check_components(config: RunConfig) -> None:
    """Raise UserError for an unknown part or argument, before anything is started."""
    for table, component, where in (
        (BACKBONES, config.model.backbone, "model.backbone"),
        (GATES, config.model.gate, "model.gate"),
        (HEADS, config.model.head, "model.head"),
        (ENGINES, config.train.engine, "train.engine"),
    ):
        entry(table, component, where)


def transform(config: RunConfig) -> AugmentConfig:
    """Return the training augmentation and evaluation transform."""
    data = config.data
    given = data.augment.model_dump()
    own = given.pop("own")
    return AugmentConfig(
        size=data.image_size,
        resize=data.resize,
        channels=data.channels,
        mean=data.mean,
        std=data.std,
        own=None if own is None else AugmentConfig(size=data.image_size, channels=data.channels, **own),
        **given,
    )


def batch_rule(config: RunConfig) -> BatchRule:
    """Return how batches are drawn."""
    train = config.train
    return BatchRule(
        train.batch_size,
        train.samples_per_class,
        train.steps_per_epoch,
        train.temperature,
        train.schedule,
        train.class_temperature,
    )


def build_missing_shards(config: RunConfig) -> None:
    """Build `data.shards` from `data.build` when they do not exist yet."""
    path = Path(config.data.shards)
    if config.data.build is not None and not path.exists():
        log.info("building %s from %s", path, config.data.build)
        build_shards(config.data.build, path, size=config.data.image_size, options=config.data.build_options)


def open_splits(
    config: RunConfig, tell: Callable[..., None] | None = None
) -> tuple[ShardFolder, SplitReader, SplitReader, SplitReader | None]:
    """Return the shard folder and its train (the part that data.fraction says), validation and, if any, test split.

    `tell(sample_id=, path=, reason=)` hears of images of the train split that are replaced.

    Raises:
        UserError: no shards there, an empty split, or a split with one class only.
    """
    path = Path(config.data.shards)
    if not path.exists():
        raise UserError(f"there are no shards at {path}: build them with 'subspace shards build SOURCE {path}'")
    folder = open_shards(path, verify=config.data.verify)
    data = config.data
    made = partial(TrainingReader, seed=config.seed, max_corrupt=data.max_corrupt, tell=tell, fraction=data.fraction)
    train, validation = folder.split("train", made), folder.split("validation")
    for split in (train, validation) if config.evaluate.by == "retrieval" else ():
        if len(set(split.labels.tolist())) < 2:
            raise UserError(f"the {split.name} split of {path} has one class only; metric learning needs at least two")
    test = folder.split("test") if folder.manifest.counts.get("test") else None
    return folder, train, validation, test


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


def engine(config: RunConfig, network: EmbeddingModel, world_size: int) -> Engine:
    """Return the engine that trains `network` on this rank."""
    train, optim = config.train, config.optim
    pieces = train.logical_shards if config.deterministic else train.accumulate * world_size
    make = optimiser(config)
    if train.engine.name == "deepspeed":
        # Without it DeepSpeed looks for accelerators by itself, and logs that it found none.
        os.environ.setdefault("DS_ACCELERATOR", distributed.device().type)
        own: dict[str, Any] = {"timeout_s": config.launch.timeout_s}
    else:
        own = {"deterministic": config.deterministic, "average_decay": train.average_weights}
    return entry(ENGINES, train.engine, "train.engine")(
        network,
        lambda net: make(parameter_groups(net, optim.lr, optim.embedding_lr)),
        pieces=pieces,
        cached=train.accumulate > 1,
        precision=train.precision,
        clip_norm=optim.clip_norm,
        **own,
    )


def optimiser(config: RunConfig) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """Return what makes an optimiser of parameter groups."""
    optim = config.optim
    of_sgd = {"momentum": optim.momentum, "nesterov": optim.nesterov} if optim.name == "sgd" else {}
    return partial(OPTIMISERS[optim.name], weight_decay=optim.weight_decay, **of_sgd)


def reading_engine(config: RunConfig, network: EmbeddingModel) -> Engine:
    """Return an engine that only holds weights of a checkpoint: any engine reads what any other wrote."""
    plain = config.train.model_copy(update={"engine": Component(name="ddp")})
    return engine(config.model_copy(update={"train": plain}), network, 1)


def check_engine(config: RunConfig) -> None:
    """Raise UserError for what DeepSpeed cannot do, or when it is asked for and not installed."""
    if config.train.engine.name != "deepspeed":
        return
    entry(ENGINES, config.train.engine, "train.engine")
    check_zero(**config.train.engine.arguments)
    if find_spec("deepspeed") is None:
        raise UserError(
            "train.engine.name deepspeed: DeepSpeed is not installed; pip install 'subspace-trainer[deepspeed]'"
        )
    if config.deterministic:
        raise UserError("deterministic runs need train.engine.name ddp: DeepSpeed sums in an order of its own")
    if config.train.average_weights:
        raise UserError("train.average_weights needs train.engine.name ddp: DeepSpeed's weights are spread over ranks")


def check_world_size(config: RunConfig, world_size: int) -> None:
    """Raise UserError when the engine cannot do what is asked, or the global batch cannot be spread evenly."""
    check_engine(config)
    train = config.train
    if config.deterministic and world_size > train.logical_shards:
        raise UserError(
            f"train.logical_shards {train.logical_shards} is too few for {world_size} ranks, each of which holds one at"
            " least in deterministic runs: start fewer ranks, or a new run with more train.logical_shards"
        )
    parts = world_size * train.accumulate
    if not config.deterministic and train.batch_size % parts:
        raise UserError(
            f"train.batch_size {train.batch_size} is not divisible by {parts} (ranks times train.accumulate)"
        )
    looks_at_batch = config.model.backbone.arguments.get("norm") in ("batch", "sync")
    if train.average_weights and looks_at_batch:
        raise UserError(
            "train.average_weights needs model.backbone.norm 'frozen' or 'group': statistics are not averaged"
        )
    if train.accumulate > 1 and looks_at_batch:
        raise UserError(
            "train.accumulate needs model.backbone.norm 'frozen' or 'group': batch statistics would be those of pieces"
        )
    if config.deterministic and looks_at_batch:
        raise UserError(
            "deterministic runs need model.backbone.norm 'frozen' or 'group': batch statistics depend on ranks"
        )


def fresh_state(config: RunConfig, device: torch.device | str = "cpu") -> RunState:
    """Return the state before the first step."""
    partition = SubspacePartition.equal(num_dims(config), config.model.num_subspaces)
    return RunState(partition, TaylorSaliency(partition.num_dims, config.growth.score, device))


def growth_policy(config: RunConfig) -> Any:
    """Return the growth rule."""
    settings = config.growth
    if not settings.enabled or settings.rule == "doubling":
        return NoGrowth()
    names = ("patience", "min_delta", "min_tail", "min_selected", "select", "threshold", "fraction", "accept")
    return PlateauGrowth(max_subspaces=settings.max_subspaces, **{name: getattr(settings, name) for name in names})


def plan_config(config: RunConfig) -> PlanConfig:
    """Return when to recluster and when to fine-tune the whole embedding."""
    return PlanConfig(
        num_epochs=config.train.epochs,
        finetune_epoch=config.train.finetune_epoch if config.objective.ensemble is None else 0,
        recluster_every=config.cluster.recluster_every,
        after_growth="at_once" if config.cluster.recluster_after_growth else "published",
        full_embedding_epoch=config.train.full_embedding_epoch,
        double_every=config.growth.double_every if doubling(config) else None,
        double_to=config.growth.max_subspaces or 1,
        freeze_divided=config.growth.freeze_divided,
    )


def doubling(config: RunConfig) -> bool:
    """Return whether learners are masks over all dimensions, whose clusters double."""
    return config.growth.enabled and config.growth.rule == "doubling"


def controller_config(config: RunConfig) -> ControllerConfig:
    """Return what the controller needs to plan and decide; it watches the one number that rank 0 reports."""
    widths = fresh_state(config).partition.widths
    return ControllerConfig(plan_config(config), widths, growth_policy(config), config.seed, metric="score")


def embed_options(config: RunConfig) -> EmbedOptions:
    """Return how splits are embedded for clustering and evaluation."""
    settings = config.evaluate
    return EmbedOptions(transform(config), settings.batch_size, settings.precision, config.data.num_workers)


def validator(config: RunConfig, split: SplitReader, objective: Objective) -> Validator:
    """Return what scores the validation split at the end of an epoch."""
    settings, options = config.evaluate, embed_options(config)
    if settings.by == "retrieval":
        return Retrieval(split, options, settings.nmi_seeds_while_training, settings.exclude)
    if settings.by == "masks":
        return Overlaps(split, options)
    return PretextLoss(split, options, objective, fixed_batches(config, split), config.seed)


def fixed_batches(config: RunConfig, split: SplitReader) -> list[GlobalBatch]:
    """Return the batches on which a split's loss is taken: its images in one keyed order, none twice."""
    rows = keyed.generator(config.seed, "fixed batches").permutation(len(split))
    size = min(config.train.batch_size, len(split) - len(split) % 2)
    return [(0, rows[start : start + size]) for start in range(0, len(rows) - size + 1, size)]


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


def repair_rule(config: RunConfig) -> RepairRule:
    """Return what makes a cluster trainable."""
    return RepairRule(config.cluster.min_size or config.train.batch_size, config.cluster.min_classes)


def rates(config: RunConfig) -> Rates:
    """Return the learning rate over time."""
    optim = config.optim
    return Rates(optim.schedule, config.train.epochs, optim.warmup_epochs, tuple(optim.milestones), optim.decay)


def loop_options(config: RunConfig, stop_after_step: int | None) -> LoopOptions:
    """Return the numbers of the loop."""
    return LoopOptions(
        seed=config.seed,
        epochs=config.train.epochs,
        rates=rates(config),
        evaluate_every=config.evaluate.every,
        monitor=config.growth.monitor,
        min_delta=config.growth.min_delta,
        checkpoint_every_steps=config.checkpoint.every_steps,
        on_nonfinite=config.train.on_nonfinite,
        max_nonfinite=config.train.max_nonfinite,
        verify_ranks_every=config.train.verify_ranks_every,
        stop_after_step=stop_after_step,
    )
