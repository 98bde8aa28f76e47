"""A run folder: how it is taken, what is written first, and whether it may be gone on with."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from data_shards.files import write_text
from launch import history
from launch.config import Resume, RunConfig, dump_config, stored_config
from launch.ledger import Ledger
from trainer.checkpoint import CheckpointStore

# What may differ between the stored and the given configuration when a run goes on: where and how fast, never what.
FREE = (
    *("launch", "ray", "checkpoint", "train.engine", "train.precision", "train.verify_ranks_every", "data.num_workers"),
    *("cluster.index", "cluster.placement", "cluster.num_shards", "cluster.num_cpus", "cluster.num_gpus"),
    "cluster.timeout_s",
)
LEAST_FREE_BYTES = 64 << 20


def check(run: Path, config: RunConfig, resume: Resume, launch: str | None = None) -> None:
    """Raise UserError unless the folder may be taken: new, or to be gone on with. Changes nothing.

    Without a `launch` the question is for later: whether another launch is at work now does not matter.

    Raises:
        UserError: the folder is used and resume is "never", nothing is there and it is "must", the configuration is
            another one, or the disk is full.
        RunTaken: another launch is at work in it.
    """
    ledger = Ledger(run)
    if launch is not None and history.taken_by(ledger.events(), launch):
        # Its agent starts the ranks again, with the words of the first time.
        resume = "auto"
    used = (run / "config.yaml").exists()
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; give a folder for the run")
    if used and resume == "never":
        raise UserError(f"run folder {run} is already used: choose another --run-dir, or go on with --resume auto")
    if resume == "must" and not CheckpointStore(run / "checkpoints").complete():
        raise UserError(f"--resume must: {run} holds no complete checkpoint to go on from")
    if used:
        _check_same(run, config)
        if launch is not None:
            ledger.check_free(launch)
    _check_space(run)


def take(run: Path, config: RunConfig, launch: str) -> bool:
    """Take a folder that `check` allowed; return whether a run is there to go on with."""
    used = (run / "config.yaml").exists()
    (run / "logs").mkdir(parents=True, exist_ok=True)
    write_text(run / "config.yaml", dump_config(config))
    write_text(run / "env.json", json.dumps(environment(), indent=1) + "\n")
    Ledger(run).take(launch)
    return used


def config_hash(config: RunConfig) -> str:
    """Return a hash of all that must stay the same when a run goes on.

    Settings at their defaults are no part of it, so a run outlives a version that brings a new setting.
    """
    tree = config.model_dump(mode="json", exclude_defaults=True)
    fixed = {name: _at(tree, name) for name in _leaves(tree) if not _is_free(name)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _is_free(name: str) -> bool:
    return f"{name}.".startswith(tuple(f"{free}." for free in FREE))


def _check_same(run: Path, config: RunConfig) -> None:
    if changed := difference(run, config):
        raise UserError(
            f"{run} was made with another configuration: {changed}; use another --run-dir, or the stored"
            f" {run / 'config.yaml'}"
        )


def difference(run: Path, config: RunConfig) -> str:
    """Return what must stay the same and is not as in the used folder: "optim.lr was 0.1, now 0.2"; "" if nothing."""
    stored, given = stored_config(run).model_dump(mode="json"), config.model_dump(mode="json")
    for name in _leaves(stored, given):
        if not _is_free(name) and _at(stored, name) != _at(given, name):
            return f"{name} was {_at(stored, name)!r}, now {_at(given, name)!r}"
    return ""


def _leaves(*trees: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for tree in trees:
        for name, value in tree.items():
            below = _leaves(value) if isinstance(value, dict) else []
            names.extend([f"{name}.{rest}" for rest in below] or [name])
    return list(dict.fromkeys(names))


def _at(tree: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _check_space(run: Path) -> None:
    parent = run
    while not parent.exists():
        parent = parent.parent
    if shutil.disk_usage(parent).free < LEAST_FREE_BYTES:
        raise UserError(f"the disk of {run} has less than {LEAST_FREE_BYTES >> 20} MiB free: make room first")
    if not os.access(parent, os.W_OK):
        raise UserError(f"{parent} cannot be written to: choose another --run-dir")


def environment() -> dict[str, Any]:
    """Return what a reader needs to reproduce the run: versions, machine, command."""
    names = ("torch", "numpy", "ray", "faiss-cpu", "faiss-gpu", "pyarrow", "scikit-learn", "pytorch-metric-learning")
    return {
        "versions": {"python": platform.python_version(), **{n: v for n in names if (v := _version(n))}},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.platform()},
        "command": ["subspace", *sys.argv[1:]],
        "threads": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
