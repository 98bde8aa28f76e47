"""The best network of a run, ready to be looked at by one process: what evaluate, segment and explain begin with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.errors import UserError
from launch.config import RunConfig, stored_config
from launch.fingerprint import pinned

if TYPE_CHECKING:  # torch reads the pinned environment when it is imported
    from torch import Tensor

    from trainer.model import EmbeddingModel
    from trainer.subspaces.partition import SubspacePartition


@dataclass(frozen=True)
class Trained:
    """What a run's best checkpoint holds, its weights in the network (the averaged ones, where a run keeps them)."""

    run: Path
    config: RunConfig
    network: EmbeddingModel
    partition: SubspacePartition
    epoch: int
    tensors: dict[str, Tensor]


def config_of(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return what a run was started with, and pin the environment as it did; call it before torch is imported.

    Raises:
        UserError: not a run folder, or overrides that `stored_config` does not take.
    """
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} is not a run folder: it has no config.yaml")
    config = stored_config(run, overrides)
    os.environ.update(pinned() if config.deterministic else {})
    return config


@contextmanager
def alone(config: RunConfig) -> Iterator[None]:
    """Be the only rank, with the threads that the configuration asks for."""
    from launch import rank
    from trainer import distributed

    distributed.initialise(config.launch.timeout_s)
    try:
        rank.prepare_process(config)
        yield
    finally:
        distributed.shut_down()


@contextmanager
def unchanged() -> Iterator[None]:
    """Leave this process as it was, its environment, threads and determinism: for what is a library to others."""
    import torch

    environment, threads = dict(os.environ), torch.get_num_threads()
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def load(run: Path, config: RunConfig) -> Trained:
    """Return the best network of a run in evaluation mode, inside `alone`.

    Raises:
        UserError: there is no checkpoint yet.
        DataIntegrityError: it is damaged.
    """
    from launch import build, engines, networks
    from trainer import distributed
    from trainer.checkpoint import CheckpointStore
    from trainer.state import RunState

    best = CheckpointStore(run / "checkpoints").best()
    network = networks.model(networks.from_random(config), distributed.device())
    engine = engines.reading_engine(config, network)
    engine.load_tensors(best.tensors)
    state = RunState.from_checkpoint(best, build.fresh_state(config).saliency)
    with engine.averaged():
        weights = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(weights)
    return Trained(run, config, network.eval(), state.partition, int(state.best["epoch"]), best.tensors)
