"""Configuration -> what a step optimises: the tables of losses and miners, and the learners around them.

A loss or a miner is one of ours, by its line here, or a class of pytorch-metric-learning, by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from data_shards import keyed
from data_shards.errors import UserError, nearest_of
from launch import build, engines, networks
from launch.config import RunConfig
from launch.parts import constructed, entry
from launch.priors import shape_priors
from launch.sections import Component, ShapeSection
from trainer import miners
from trainer.losses import library
from trainer.losses.classification import Classification
from trainer.losses.contrastive import contrastive
from trainer.losses.margin import margin_loss
from trainer.objectives.critic import Critic, ShapeGuide
from trainer.objectives.ensemble import EnsembleObjective
from trainer.objectives.learners import Learners, Loss
from trainer.objectives.local import LocalObjective
from trainer.objectives.masks import MaskedObjective
from trainer.objectives.objective import Objective
from trainer.objectives.overlap import OverlapObjective
from trainer.objectives.subspace import SubspaceObjective

LOSSES: dict[str, Callable[..., Any]] = {
    "margin": margin_loss,
    "contrastive": contrastive,
    "cross_entropy": Classification,
}
MINERS: dict[str, Callable[..., Any]] = {
    "nearest_beyond_cutoff": miners.nearest_beyond_cutoff,
    "distance_weighted": miners.distance_weighted,
    "all_triplets": miners.all_triplets,
    "semi_hard": miners.semi_hard,
    "none": miners.no_tuples,
}


def check_names(config: RunConfig) -> None:
    """Raise UserError for an unknown loss or miner, or an unknown argument of ours, without building anything."""
    settings = config.objective
    for table, component, kind in ((LOSSES, settings.loss, "losses"), (MINERS, settings.miner, "miners")):
        where = f"objective.{'loss' if kind == 'losses' else 'miner'}"
        if _is_ours(table, component, where, kind):
            entry(table, component, where)
    if settings.loss.name == "margin" and settings.miner.name == "none":
        raise UserError("objective.miner none: the margin loss wants triplets; name a miner")


def build_objective(config: RunConfig, num_classes: int, device: torch.device | str = "cpu") -> Objective:
    """Return the objective of a run whose training split has `num_classes` classes.

    Raises:
        UserError: arguments that make no loss or miner.
    """
    settings = config.objective
    if settings.local is not None:
        layout = networks.local_layout(config)
        assert layout is not None
        numbers = settings.local.model_dump(exclude={"shape"})
        return LocalObjective(layout, config.seed, **numbers, guide=_guide(config, settings.local.shape, device))
    if settings.masks:
        return OverlapObjective()
    make, miner = partial(_loss, config, num_classes), _miner(config)
    optimiser = engines.optimiser(config)
    lr = settings.lr or config.optim.lr
    ours = settings.loss.name in LOSSES
    if build.doubling(config):
        dims, most = config.model.num_dims, config.growth.max_subspaces or 1
        loss = make(dims, "0", None)
        if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            raise UserError(
                f"growth.rule doubling: the loss {settings.loss.name} learns something itself; name another"
            )
        return MaskedObjective(
            loss, miner, config.seed, dims, most, optimiser, lr, settings.mask_penalty, device, draws=not ours
        )
    learners = Learners(make, optimiser, lr, build.fresh_state(config).partition, device)
    common = (learners, miner, config.seed, settings.normalize, not ours)
    if settings.ensemble is None:
        return SubspaceObjective(*common)
    ensemble = settings.ensemble
    return EnsembleObjective(*common, weight=ensemble.divergence, margin=ensemble.margin, pairs=ensemble.pairs)


def _guide(config: RunConfig, settings: ShapeSection | None, device: torch.device | str) -> ShapeGuide | None:
    """Return the critic of shapes, if one is asked for."""
    if settings is None:
        return None
    side = config.data.image_size
    critic = Critic(side, settings.slope, config.seed).to(device)
    priors = shape_priors(settings.priors, side, config.seed, settings.share)
    lr = config.optim.lr * settings.lr_factor
    make = engines.optimiser(config)
    return ShapeGuide(critic, priors, make, lr, settings.weight, settings.penalty, settings.agreement)


def _loss(config: RunConfig, num_classes: int, num_dims: int, name: str, seed: int | None) -> Loss:
    """Return the loss of `num_dims` dimensions; its start values are keyed by its name, and a seed if there is one."""
    component, where = config.objective.loss, "objective.loss"
    key = keyed.key(config.seed if seed is None else seed, "loss", name) >> 1
    if component.name in LOSSES:
        made = entry(LOSSES, component, where)
        if not inspect.isclass(LOSSES[component.name]):
            return made
        loss: Loss = constructed(where, made, num_dims, num_classes, seed=key)
        return loss
    with library.keyed_streams(key):
        found: Loss = library.make(
            "losses", component.name, component.arguments, where, num_dims=num_dims, num_classes=num_classes
        )
        return found


def _miner(config: RunConfig) -> Callable[..., Any]:
    component, where = config.objective.miner, "objective.miner"
    if component.name in MINERS:
        return entry(MINERS, component, where)
    made = library.make("miners", component.name, component.arguments, where)
    return library.as_miner(made, triplets=config.objective.loss.name == "margin")


def _is_ours(table: Mapping[str, Any], component: Component, where: str, kind: str) -> bool:
    if component.name in table:
        return True
    names = library.names(kind)
    if component.name in names:
        return False
    guess = nearest_of(component.name, [*table, *names])
    beside = f"there are {', '.join(table)}, and {', '.join(names)} of pytorch-metric-learning"
    raise UserError(f"{where}.name: unknown '{component.name}'{guess}; {beside}")
