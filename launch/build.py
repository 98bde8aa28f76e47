"""Configuration -> the parts around the network: data, batches, plan, growth, scores and the numbers of the loop.

The network is made in launch/networks.py, the engine in launch/engines.py, losses and miners in launch/objective.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.assignment import RepairRule
from cluster.controller import ControllerConfig
from cluster.growth import NoGrowth, PlateauGrowth
from cluster.plan import PlanConfig
from data_shards import keyed
from data_shards.augment import AugmentConfig
from data_shards.errors import UserError
from data_shards.order import BatchRule, GlobalBatch
from data_shards.quarantine import TrainingReader
from data_shards.reader import ShardFolder, SplitReader, open_shards
from launch import networks
from launch.config import RunConfig
from trainer.evaluate import EmbedOptions
from trainer.loop import LoopOptions
from trainer.objectives.objective import Objective
from trainer.optim import Rates
from trainer.state import RunState
from trainer.subspaces.partition import SubspacePartition
from trainer.subspaces.saliency import TaylorSaliency
from trainer.validators import Overlaps, PretextLoss, Retrieval, Validator

log = logging.getLogger(__name__)


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
    """Build `data.shards` from `data.build` when they do not exist yet, at the size that windows are cut from."""
    data, path = config.data, Path(config.data.shards)
    if data.build is not None and not path.exists():
        from data_shards.build import build as build_shards  # with all that decodes images

        log.info("building %s from %s", path, data.build)
        build_shards(data.build, path, size=data.resize or data.image_size, options=data.build_options)


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


def fresh_state(config: RunConfig, device: torch.device | str = "cpu") -> RunState:
    """Return the state before the first step."""
    partition = SubspacePartition.equal(networks.num_dims(config), config.model.num_subspaces)
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
