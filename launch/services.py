"""The shared processes of a run, Controller and k-means actors: started once, joined by every rank.

`subspace train` starts them beside the agent, so they outlive ranks; under somebody else's torchrun rank 0 does.
Ray's token authentication is on unless RAY_AUTH_MODE turns it off, which is refused for anything that other machines
can reach. A token that Ray finds (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH) is used, otherwise a local Ray gets one of its
own in a file that only its owner may read. A Ray of one machine listens on its loopback interface only.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.controller import ControllerCore
from cluster.journal import Journal
from cluster.local import LocalCluster
from data_shards.errors import UserError
from launch import build
from launch.config import RunConfig
from launch.listening import is_loopback
from trainer import distributed

ADDRESS = "SUBSPACE_RAY_ADDRESS"
TOKEN_FILE = ".ray_token"
LOOPBACK = "127.0.0.1"


def run_id(config: RunConfig, run: Path) -> str:
    """Return the name of a run's actors: the same for the same folder, whenever it is gone on with."""
    return f"{config.name}-{hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]}"


def _authenticate(run: Path, make_token: bool) -> None:
    """Turn token authentication on, with the user's token, or else with the run's own."""
    os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path = Path(os.path.abspath(run / TOKEN_FILE))
    if make_token:
        path.unlink(missing_ok=True)  # what a killed run left, or somebody else put there
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    if path.exists():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def refuse_open_ray(address: str) -> None:
    """Raise UserError when Ray's authentication is off and other machines reach `address` (HOST, HOST:PORT or a URL):
    whoever reaches Ray runs code there."""
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" or is_loopback(address):
        return
    raise UserError(
        f"Ray at {address} would let anybody who reaches it run code (RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}):"
        " set RAY_AUTH_MODE=token on every machine, with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
    )


@contextmanager
def started(config: RunConfig, run: Path, world_size: int) -> Iterator[None]:
    """Start (or join) Ray and the run's actors; they end with this context. Does nothing without Ray."""
    if config.cluster.backend == "local":
        yield
        return
    with ExitStack() as ends:
        address = ends.enter_context(ray_at(given := _given_address(config), run, None if given else LOOPBACK))
        ends.enter_context(_actors(config, run, world_size))
        os.environ[ADDRESS] = address
        ends.callback(os.environ.pop, ADDRESS, None)
        yield


@contextmanager
def ray_at(address: str | None, folder: Path, node_ip: str | None) -> Iterator[str]:
    """Start a Ray (None), or join the one at `address`; yield its address. A token of its own lies in `folder`.

    `node_ip` is this machine's address for the others; None: whatever Ray finds.
    """
    refuse_open_ray(address or node_ip or socket.gethostname())
    _authenticate(folder, make_token=address is None)
    from cluster import ray_session  # after: Ray reads the authentication mode once, when it is imported

    session = ray_session.ensure_ray(address, node_ip=node_ip)
    try:
        yield session.address
    finally:
        session.close()
        (folder / TOKEN_FILE).unlink(missing_ok=True)


def _given_address(config: RunConfig) -> str | None:
    return config.ray.address or os.environ.get("RAY_ADDRESS")


@contextmanager
def _actors(config: RunConfig, run: Path, world_size: int) -> Iterator[None]:
    from cluster import actors

    options = _actor_options(config, run, world_size)
    journal = str((run / "journal.jsonl").resolve())
    group = actors.start(run_id(config, run), journal, build.controller_config(config), world_size, options)
    try:
        yield
    finally:
        group.close()


def _actor_options(config: RunConfig, run: Path, world_size: int) -> Any:
    from cluster.remote_shards import ActorOptions

    settings = config.cluster
    return ActorOptions(
        num_shards=0 if settings.placement == "ranks" else settings.num_shards or world_size,
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        num_threads=config.launch.threads or 1,
        backend=settings.index,
        num_iterations=settings.num_iterations,
        log_folder=str((run / "logs").resolve()),
    )


def _assemble(config: RunConfig, run: Path, ends: ExitStack) -> str:
    """Form one Ray of the machines that the ranks are on, with the run's actors, and return its address.

    Rank 0's machine is the head; the first rank of every other machine adds its own. A Ray that is named, not made,
    is used as it is.
    """
    head_ip, node_ip = distributed.node_addresses()
    if distributed.num_nodes() == 1 and _given_address(config) is None:
        head_ip = LOOPBACK
    address = None
    with distributed.stage("start of Ray"):
        if distributed.rank() == 0:
            address = ends.enter_context(ray_at(_given_address(config), run, node_ip=head_ip))
        address = str(distributed.broadcast_json(address))
        if _given_address(config) is None:
            _add_machine(config, run, address, node_ip, ends)
        if distributed.rank() == 0:
            ends.enter_context(_actors(config, run, distributed.world_size()))
        distributed.barrier()
    return address


def _add_machine(config: RunConfig, run: Path, address: str, node_ip: str | None, ends: ExitStack) -> None:
    if distributed.rank() == 0:
        from cluster import ray_session

        ray_session.wait_for_nodes(distributed.num_nodes(), config.launch.timeout_s)
    elif distributed.leads_node():
        _authenticate(run, make_token=False)
        from cluster import ray_session

        ends.enter_context(ray_session.raylet(address, node_ip))


def connect(config: RunConfig, run: Path, attempt: int, ends: ExitStack) -> Any:
    """Return this rank's client of the run's shared processes; what had to be started ends with `ends`."""
    settings = config.cluster
    if settings.backend == "local":
        journal = Journal(run / "journal.jsonl", hold=False) if distributed.rank() == 0 else None  # rank 0 alone asks
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
        os.environ[ADDRESS] = _assemble(config, run, ends)
    _authenticate(run, make_token=False)
    from cluster import client, ray_session

    _, node_ip = distributed.node_addresses()
    address = os.environ[ADDRESS]
    session = ray_session.ensure_ray(address, node_ip=LOOPBACK if address.startswith(LOOPBACK) else node_ip)
    ends.callback(session.close)
    rank, world_size = distributed.rank(), distributed.world_size()
    beside = _actor_options(config, run, world_size) if settings.placement == "ranks" else None
    return client.connect(run_id(config, run), rank, world_size, attempt, settings.timeout_s, beside=beside)
