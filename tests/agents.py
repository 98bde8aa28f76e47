"""torchrun's agents, one per machine, started by hand as people do on a cluster."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.runs import ROOT, environment


@dataclass(frozen=True)
class Machine:
    """Where an agent runs: a prefix of its command line, and the address that it is reached by."""

    prefix: tuple[str, ...]
    address: str


def agent_environment() -> dict[str, str]:
    """Return what docs/launch.md asks people to set: without it a restarted rank may wait for those before it."""
    return {**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def agent(machine: Machine, endpoint: str, nnodes: str, run: Path, *words: str | Path) -> subprocess.Popen[str]:
    """Start torchrun on a machine."""
    command = ["-m", "launch", "train", *map(str, words), "--run-dir", str(run)]
    options = ["--nnodes", nnodes, "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
    options += ["--rdzv-id", "two", "--local-addr", machine.address, "--max-restarts", "3"]
    # torch looks for its host's name among the addresses; a namespace shares the name and has others.
    options += ["--rdzv-conf", f"is_host={endpoint.startswith(machine.address + ':')}", "--log-dir", f"{run}-agents"]
    return subprocess.Popen(
        [*machine.prefix, sys.executable, "-m", "torch.distributed.run", *options, *command],
        env=agent_environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def standalone(nproc: int, run: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run torchrun on one machine to its end."""
    options = ["--standalone", "--nproc-per-node", str(nproc), "--max-restarts", "1", "--log-dir", f"{run}-agents"]
    command = ["-m", "launch", "train", *map(str, words), "--run-dir", str(run)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *command],
        capture_output=True,
        text=True,
        timeout=240,
        env=agent_environment(),
        cwd=ROOT,
    )
