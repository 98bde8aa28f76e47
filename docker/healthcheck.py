"""Is what runs in this container well? `healthcheck.py` looks at trainings, `healthcheck.py ray` at the Ray node.

A training is a run whose train.log a process of this container holds open. It is ill when none of the files that it
writes has changed for SUBSPACE_STALL_S seconds. A hung rank or actor ends its run by a deadline of 600 s
(launch.timeout_s, cluster.timeout_s), so what is silent for longer has lost its deadlines too; raise it with them. No
training, no complaint: building shards or writing a report is watched by its exit code.

A Ray node is well when its agent says so: the head knows the raylet as alive, and the head's own service answers.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from pathlib import Path

STALL_S = float(os.environ.get("SUBSPACE_STALL_S", "900"))
SIGNS_OF_LIFE = ("train.log", "metrics.jsonl", "events.jsonl", "status.json")
RAY_AGENT = "http://127.0.0.1:52365/api/healthz"  # Ray's default port; one of the few paths that need no token


def runs_open_here(processes: Path = Path("/proc")) -> set[Path]:
    """Return the run folders whose train.log some process of this container holds open."""
    runs = set()
    for descriptor in processes.glob("[0-9]*/fd/*"):
        try:
            target = Path(os.readlink(descriptor))
        except OSError:  # the process has ended, or is not ours
            continue
        if target.name == "train.log" and (target.parent / "status.json").exists():
            runs.add(target.parent)
    return runs


def silence_s(run: Path) -> float:
    """Return for how long a run has written nothing."""
    return time.time() - max((run / name).stat().st_mtime for name in SIGNS_OF_LIFE if (run / name).exists())


def trainings() -> int:
    """Return 1 when a training of this container is silent for too long, else 0; say what was seen."""
    silences = {run: silence_s(run) for run in sorted(runs_open_here())}
    for run, silent in silences.items():
        print(f"{run}: last sign of life {silent:.0f} s ago")
    return int(any(silent > STALL_S for silent in silences.values()))


def ray_node() -> int:
    """Return 0 when the Ray node of this container is well, else 1; say what its agent says."""
    try:
        with urllib.request.urlopen(RAY_AGENT, timeout=8) as answer:
            print(answer.read().decode())
    except OSError as error:  # refused, timed out, or HTTP 503
        print(f"{RAY_AGENT}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(ray_node() if sys.argv[1:] == ["ray"] else trainings())
