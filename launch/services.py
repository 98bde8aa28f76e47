"""The shared processes of a run, Controller and k-means actors: started once, joined by every rank.

`subspace train` starts them beside the agent, so they outlive ranks; under somebody else's torchrun rank 0 does.
Ray's token authentication is always on: a token that Ray finds (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) is used, otherwise
a local Ray gets one of its own in a file that only its owner may read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.controller import ControllerCore
from cluster.journal import Journal
from cluster.local import LocalCluster
from launch import build
from launch.config import RunConfig
from trainer import distributed

ADDRESS = "SUBSPACE_RAY_ADDRESS"
TOKEN_FILE = ".ray_token"


def run_id(config: RunConfig, run: Path) -> str:
    """Return the name of a run's actors: the same for the same folder, whenever it is gone on with."""
    return f"{config.name}-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]}"


def _authenticate(run: Path, make_token: bool) -> None:
    """Turn token authentication on, with the user's token, or else with the run's own."""
    os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = (run / TOKEN_FILE).resolve()
    if make_token and not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    if path.exists():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


@contextmanager
def started(config: RunConfig, run: Path, world_size: int) -> Iterator[None]:
    """Start (or join) Ray and the run's actors; they end with this context. Does nothing without Ray."""
    if config.cluster.backend == "local":
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    _authenticate(run, make_token=address is None)
    from cluster import actors  # after: Ray reads the authentication mode once, when it is imported

    settings = config.cluster
    options = actors.ActorOptions(
        num_shards=settings.num_shards or world_size,
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        num_threads=config.launch.threads or 1,
        backend=settings.index,
        num_iterations=settings.num_iterations,
    )
    session = actors.ensure_ray(address)
    try:
        journal = str((run / "journal.jsonl").resolve())
        group = actors.start(run_id(config, run), journal, build.controller_config(config), world_size, options)
        os.environ[ADDRESS] = session.address
        try:
            yield
        finally:
            group.close()
    finally:
        session.close()
        os.environ.pop(ADDRESS, None)
        (run / TOKEN_FILE).unlink(missing_ok=True)


def connect(config: RunConfig, run: Path, attempt: int, ends: ExitStack) -> Any:
    """Return this rank's client of the run's shared processes; what had to be started ends with `ends`."""
    settings = config.cluster
    if settings.backend == "local":
        journal = Journal(run / "journal.jsonl") if distributed.rank() == 0 else None  # rank 0 alone asks
        controller = ControllerCore(build.controller_config(config), journal)
        return LocalCluster(
            controller,
            attempt=attempt,
            num_shards=settings.num_shards or 1,
            num_iterations=settings.num_iterations,
            backend=settings.index,
            gather=distributed.gather_arrays if distributed.world_size() > 1 else None,
            rank=distributed.rank(),
        )
    if distributed.any_rank(ADDRESS not in os.environ):
        if distributed.rank() == 0:
            ends.enter_context(started(config, run, distributed.world_size()))
        os.environ[ADDRESS] = distributed.broadcast_json(os.environ.get(ADDRESS))
    _authenticate(run, make_token=False)
    from cluster import actors

    session = actors.ensure_ray(os.environ[ADDRESS])
    ends.callback(session.close)
    timeout_s = settings.timeout_s
    return actors.connect(run_id(config, run), distributed.rank(), distributed.world_size(), attempt, timeout_s)
