"""`subspace serve`: replicas that search, the HTTP service in front of them, and the page on it."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from data_shards.errors import UserError
from launch.config import RunConfig
from launch.listening import Address, bound, told

_MOST_CONNECTIONS = 256  # each may hold a body in memory


@dataclass(frozen=True)
class Pool:
    """How many replicas, how many requests may wait for them, and how long one may take."""

    replicas: int = 1
    queued: int = 64
    timeout_s: float = 30.0


def check_installed() -> None:
    """Raise UserError without the packages of the extra."""
    try:
        import fastapi  # noqa: F401
        import grpc_reflection  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'subspace-trainer[serve]'") from None


def serve(run: Path, config: RunConfig, folder: Path, address: Address, pool: Pool, max_bytes: int) -> None:
    """Serve until a signal comes.

    Raises:
        UserError: no index, an address that cannot be listened on, or replicas that do not start.
    """
    from launch import build
    from launch.retrieval.index_folder import open_images, read_manifest
    from launch.retrieval.originals import Originals
    from launch.retrieval.page import render
    from launch.retrieval.web import Service, make_app
    from launch.services import LOOPBACK, ray_at

    manifest = read_manifest(folder)
    originals = Originals(run, manifest, open_images(folder, manifest), build.transform(config))
    with ExitStack() as ends:
        ends.enter_context(_ended_by_sigterm())
        listener = ends.enter_context(bound(address))
        private = ends.enter_context(tempfile.TemporaryDirectory(prefix="serve-"))
        ends.enter_context(ray_at(None, Path(private), LOOPBACK))
        from launch import ray_serve  # after: Ray reads the authentication mode once, when it is imported

        asking = ends.enter_context(ray_serve.replicas(run, folder, pool))
        page = partial(render, config.name, manifest, bool(address.token))
        service = Service(asking.ask, asking.alive, originals, page, address.token, max_bytes)
        _run(make_app(service), listener)


def _run(app: Any, listener: socket.socket) -> None:
    import uvicorn

    listener.listen()  # before the address is told: who connects now waits for the loop
    print(f"serving at {told(listener)}", flush=True)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Leave by an exception, so that replicas and Ray end too; uvicorn hands the signal on when it is done."""

    def leave(*_: object) -> NoReturn:
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
