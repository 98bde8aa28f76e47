"""Ray itself, as one process of a run uses it: started on this machine, or joined.

Authentication is the launcher's business: RAY_AUTH_MODE and the token are read by Ray from the environment.
"""

from __future__ import annotations

import ipaddress
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._private import ray_constants

from cluster.errors import ClusterTimeout
from cluster.janitor import RayFolder
from cluster.processes import below, descendants, die_with_parent, end
from data_shards.errors import UserError


@dataclass
class RaySession:
    """Ray as this process uses it; `close` ends only what `ensure_ray` began."""

    address: str
    owned: bool
    folder: RayFolder | None = None

    def close(self) -> None:
        """Leave Ray, and end it if this process started it; closing twice is fine."""
        if self.owned:
            processes = descendants("raylet")
            ray.shutdown()
            end(processes)
            self.owned = False
        if self.folder is not None:
            self.folder.close()
            self.folder = None


def ensure_ray(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    object_store_bytes: int | None = None,
    node_ip: str | None = None,
) -> RaySession:
    """Join the Ray at `address`, or start one on this machine (None); a Ray that already runs here is used as it is.

    `node_ip` is this machine's address as the other machines of the run know it; Ray finds one when not given. With a
    loopback address nothing of Ray listens to other machines; every driver of that Ray has to give it.

    Authentication is the launcher's business: RAY_AUTH_MODE and the token are read by Ray from the environment. Raises
    UserError when the address does not answer or refuses the token.
    """
    if ray.is_initialized():
        return RaySession(ray.get_runtime_context().gcs_address, owned=False)
    _read_authentication()
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # Ray takes a loopback address for a mistake and looks for another, unless it is told to stay on one machine.
    ray_constants.ENABLE_RAY_CLUSTER = node_ip is None or not ipaddress.ip_address(node_ip).is_loopback
    if node_ip is not None:
        common["_node_ip_address"] = node_ip
    if address is not None:
        try:
            with _own_sigterm():
                ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"Ray at {address} cannot be joined ({reason}); check ray.address and the token.") from None
        return RaySession(ray.get_runtime_context().gcs_address, owned=True)
    folder = RayFolder()
    try:
        with _own_sigterm():
            ray.init(
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_memory=object_store_bytes,
                include_dashboard=False,
                _temp_dir=folder.path,
                **common,
            )
    except BaseException:
        folder.close()
        raise
    return RaySession(ray.get_runtime_context().gcs_address, owned=True, folder=folder)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: ray.init replaces it by sys.exit, and a rank could no longer save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _read_authentication() -> None:
    """Make Ray read RAY_AUTH_MODE and the token again.

    It does so when it is imported; set later, they would reach the servers that it starts but not this process, and
    every call would be refused after 20 s (2.60). Ray itself refreshes in this way.
    """
    import ray._raylet as internals

    configuration, tokens = getattr(internals, "Config", None), getattr(internals, "AuthenticationTokenLoader", None)
    if configuration is not None and tokens is not None:
        configuration.initialize("")
        tokens.instance().reset_cache()


@contextmanager
def raylet(address: str, node_ip: str | None = None) -> Iterator[None]:
    """Add this machine to the Ray at `address` for a while; its processes die with this one, however that ends."""
    folder = RayFolder()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", address, "--block"]
    command += ["--temp-dir", folder.path, "--disable-usage-stats"]
    command += ["--node-ip-address", node_ip] if node_ip is not None else []
    process = psutil.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
        start_new_session=True,
    )
    try:
        yield
    finally:
        processes = [process, *below(process)]
        with suppress(psutil.NoSuchProcess):  # it has seen the head go
            process.terminate()
        end(processes, patience_s=10.0)
        folder.close()


def wait_for_nodes(num_nodes: int, timeout_s: float) -> None:
    """Return when so many machines have joined; raises ClusterTimeout when they do not come."""
    deadline = time.monotonic() + timeout_s
    while (there := sum(node["Alive"] for node in ray.nodes())) < num_nodes:
        if time.monotonic() > deadline:
            raise ClusterTimeout(f"{there} of {num_nodes} nodes have joined Ray within {timeout_s:g} s.")
        time.sleep(0.1)
