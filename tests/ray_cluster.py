"""A Ray cluster of several raylets on this host, in a process of its own: a head with dashboard, and nodes that work.

As a script it starts the cluster of `ray.cluster_utils`, prints a line for each raylet (process id, address of the
cluster), adds a node
for every line it reads, and takes all down at the end of its input.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tests.runs import ROOT, environment, wait_until

SETTINGS = {
    # A dead node is noticed within seconds.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    # Processes start when they are needed, not in advance.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_MARK = "raylet "
_STORE_BYTES = 80 << 20


class RayCluster:
    """The cluster as tests see it: a head without CPUs, and nodes. Nobody gets in without `token`."""

    def __init__(self, num_nodes: int, cpus_per_node: int) -> None:
        self.token = secrets.token_hex(32)
        self.variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        self.folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: sockets lie below it; marks processes
        self.raylets: list[int] = []
        port = _free_port()
        self.address = f"http://127.0.0.1:{port}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job's driver is "python"
        folders = {"TMPDIR": str(self.folder), "RAY_TMPDIR": str(self.folder)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_cluster", str(self.folder), str(port), str(cpus_per_node)],
            env={**environment(), **SETTINGS, **self.variables, **folders, "PATH": path},
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._head, self.gcs_address = self._started()
        for _ in range(num_nodes):
            self.add_node()

    def add_node(self) -> None:
        """Start one more raylet."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.raylets.append(self._started()[0])

    def _started(self) -> tuple[int, str]:
        """Return the process id of a raylet, and the address that drivers join."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                pid, address = line.removeprefix(_MARK).split()
                return int(pid), address
        raise AssertionError("the Ray cluster did not start")

    def raylet_of(self, actor: str, run: Path) -> int:
        """Return the process id of a raylet that holds an actor of this class which works for this run."""
        for raylet in self.raylets:
            for child in psutil.Process(raylet).children(recursive=True):
                if actor in child.cmdline()[0] and str(run) in str(child.open_files()):
                    return raylet
        raise AssertionError(f"no node has a {actor} that works for {run}")

    def stop_job(self, job_id: str) -> None:
        """Do what `ray job stop` does, without the seconds that the command takes to start."""
        header = {"Authorization": f"Bearer {self.token}"}
        address = f"{self.address}/api/jobs/{job_id}/stop"
        with urllib.request.urlopen(urllib.request.Request(address, method="POST", headers=header), timeout=60):
            pass

    def processes(self) -> list[str]:
        """Return the command lines of all processes of the cluster and of its jobs."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            try:
                if process.environ().get("RAY_TMPDIR") == str(self.folder):
                    found.append(f"{process.info['pid']} {' '.join(process.info['cmdline'] or [])}")
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        """Take the cluster down; nothing of it may be left."""
        try:
            self._process.communicate(timeout=120)
            wait_until(lambda: not self.processes(), f"the end of {self.processes()}", timeout_s=60)
        finally:
            shutil.rmtree(self.folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(folder: str, port: int, cpus_per_node: int) -> None:
    """Serve a cluster until the end of the input."""
    from ray.cluster_utils import Cluster

    Path(folder, "ray").mkdir()  # where Ray notes the address of the cluster
    common: dict[str, Any] = {"object_store_memory": _STORE_BYTES, "temp_dir": f"{folder}/ray"}
    head = {"include_dashboard": True, "dashboard_port": port, "num_cpus": 0}
    cluster = Cluster(initialize_head=True, head_node_args={**common, **head})
    try:
        _tell(cluster.head_node, cluster.address)
        for _ in sys.stdin:
            _tell(cluster.add_node(**common, num_cpus=cpus_per_node), cluster.address)
    finally:
        cluster.shutdown()


def _tell(node: Any, address: str) -> None:
    [raylet] = node.all_processes["raylet"]
    print(f"{_MARK}{raylet.process.pid} {address}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
