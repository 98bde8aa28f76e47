"""A Ray cluster of several raylets on this host, in a process of its own: head with dashboard, and nodes that work.

As a script it starts the cluster of `ray.cluster_utils`, prints one JSON line per node, adds a node for every line it
reads, and takes all down at the end of its input.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.runs import ROOT, environment

# A dead node is noticed within seconds; processes start when they are needed, not in advance.
SETTINGS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
STORE_BYTES = 80 << 20


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RayCluster:
    """The cluster as tests see it. Nobody gets in without `token`."""

    num_nodes: int
    cpus_per_node: int
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    raylets: list[int] = field(default_factory=list)  # process ids: head first

    def __post_init__(self) -> None:
        self.port = _free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        python = str(Path(sys.executable).parent)
        self.variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        own = {**environment(), **SETTINGS, **self.variables, "PATH": f"{python}:{os.environ['PATH']}"}
        script = [sys.executable, "-m", "tests.whole.ray_cluster", str(self.port), str(self.cpus_per_node)]
        self._process = subprocess.Popen(
            script, env=own, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._read()
        for _ in range(self.num_nodes):
            self.add_node()

    def add_node(self) -> int:
        """Start one more raylet; return its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.raylets.append(json.loads(line)["raylet"])
                return self.raylets[-1]
        raise AssertionError("the Ray cluster did not start")

    def actors(self, raylet: int, *words: str) -> list[psutil.Process]:
        """Return the processes of actors under a raylet whose names hold one of the words."""
        found = []
        for child in psutil.Process(raylet).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if line.startswith("ray::") and any(word in line for word in words):
                found.append(child)
        return found

    def close(self) -> None:
        """Take the cluster down."""
        self._process.communicate(timeout=120)


def main(port: int, cpus_per_node: int) -> None:
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        os.environ["RAY_TMPDIR"] = folder  # before Ray is imported; it would note the address in /tmp/ray
        Path(folder, "ray").mkdir()
        from ray.cluster_utils import Cluster

        common: dict[str, Any] = {"object_store_memory": STORE_BYTES, "temp_dir": f"{folder}/ray"}
        head = {"include_dashboard": True, "dashboard_port": port, "num_cpus": 0}
        cluster = Cluster(initialize_head=True, head_node_args={**common, **head})
        try:
            _tell(cluster.head_node)
            for _ in sys.stdin:
                _tell(cluster.add_node(**common, num_cpus=cpus_per_node))
        finally:
            cluster.shutdown()


def _tell(node: Any) -> None:
    [raylet] = node.all_processes["raylet"]
    print(json.dumps({"raylet": raylet.process.pid}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
