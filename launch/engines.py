"""Configuration -> engine and optimiser, and what the chosen engine cannot do, said before anything is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from data_shards.errors import UserError
from launch.config import RunConfig
from launch.parts import entry
from launch.sections import Component
from trainer import distributed
from trainer.engines.base import Engine
from trainer.engines.ddp import DDPEngine
from trainer.engines.deepspeed import DeepSpeedEngine, check_zero
from trainer.model import EmbeddingModel
from trainer.optim import OPTIMISERS, parameter_groups

ENGINES: dict[str, Callable[..., Engine]] = {"ddp": DDPEngine, "deepspeed": DeepSpeedEngine}


def engine(config: RunConfig, network: EmbeddingModel, world_size: int) -> Engine:
    """Return the engine that trains `network` on this rank."""
    train, optim = config.train, config.optim
    pieces = train.logical_shards if config.deterministic else train.accumulate * world_size
    make = optimiser(config, fused=train.engine.name == "ddp" and not config.deterministic)
    if train.engine.name == "deepspeed":
        # Without it DeepSpeed looks for accelerators by itself, and logs that it found none.
        os.environ.setdefault("DS_ACCELERATOR", distributed.device().type)
        own: dict[str, Any] = {"timeout_s": config.launch.timeout_s}
    else:
        own = {"deterministic": config.deterministic, "average_decay": train.average_weights}
        own["compiler"] = "inductor" if train.compile else None
    return entry(ENGINES, train.engine, "train.engine")(
        network,
        lambda net: make(parameter_groups(net, optim.lr, optim.embedding_lr)),
        pieces=pieces,
        cached=train.accumulate > 1,
        precision=train.precision,
        clip_norm=optim.clip_norm,
        **own,
    )


def optimiser(config: RunConfig, fused: bool = False) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """Return what makes an optimiser of parameter groups: `fused` in one pass over the weights, else in one per term.

    Fused, a step of ResNet-18's 2.8 million weights takes 6 ms instead of 28 (one core); it rounds a few weights in ten
    thousand to their neighbour, which is why deterministic runs keep the bytes that they had.
    """
    optim = config.optim
    kernel = {"fused": True} if fused else {"foreach": True}
    of_sgd = {"momentum": optim.momentum, "nesterov": optim.nesterov} if optim.name == "sgd" else {}
    return partial(OPTIMISERS[optim.name], weight_decay=optim.weight_decay, **of_sgd, **kernel)


def reading_engine(config: RunConfig, network: EmbeddingModel) -> Engine:
    """Return an engine that only holds weights of a checkpoint: any engine reads what any other wrote."""
    plain = config.train.model_copy(update={"engine": Component(name="ddp")})
    return engine(config.model_copy(update={"train": plain}), network, 1)


def check_engine(config: RunConfig) -> None:
    """Raise UserError for an unknown engine or argument, and for what DeepSpeed cannot do or when it is not there."""
    entry(ENGINES, config.train.engine, "train.engine")
    _check_compiler(config)
    if config.train.checkpoint_activations and _looks_at_batch(config):
        raise UserError(
            "train.checkpoint_activations needs model.backbone.norm 'frozen' or 'group': statistics would move twice"
        )
    if config.train.engine.name != "deepspeed":
        return
    if config.train.checkpoint_activations:
        raise UserError("train.checkpoint_activations needs train.engine.name ddp")
    check_zero(**config.train.engine.arguments)
    if find_spec("deepspeed") is None:
        raise UserError(
            "train.engine.name deepspeed: DeepSpeed is not installed; pip install 'subspace-trainer[deepspeed]'"
        )
    if config.deterministic:
        raise UserError("deterministic runs need train.engine.name ddp: DeepSpeed sums in an order of its own")
    if config.train.average_weights:
        raise UserError("train.average_weights needs train.engine.name ddp: DeepSpeed's weights are spread over ranks")


def _check_compiler(config: RunConfig) -> None:
    """Raise UserError when a network is to be compiled that cannot be, here or at all."""
    if not config.train.compile:
        return
    if config.deterministic or config.train.engine.name != "ddp":
        raise UserError("train.compile needs train.engine.name ddp and a run that is not deterministic")
    found = find_spec("triton") if torch.cuda.is_available() else shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise UserError("train.compile needs a compiler: g++ (or CXX=ANOTHER), on GPUs triton; there is none here")


def _looks_at_batch(config: RunConfig) -> bool:
    return config.model.backbone.arguments.get("norm") in ("batch", "sync")


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
    looks_at_batch = _looks_at_batch(config)
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
