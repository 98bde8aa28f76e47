"""What benchmarks share: the same work done in several ways, in turn; medians and ratios; the machine; one JSON file.

Import this before numpy or torch: it limits their threads to one, unless the benchmark has set another number.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int = 5) -> dict[str, list[float]]:
    """Return the wall seconds of every repetition of each way, {name: [seconds] * repeats}.

    The ways take turns, each round in another order, so that what else runs on the machine meets all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(repeats):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            began = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def compared(seconds: Mapping[str, list[float]], ours: str) -> dict[str, Any]:
    """Return medians, and how many times as long as `ours` every other way took: median, least and most over rounds."""
    found: dict[str, Any] = {"median_s": {name: round(median(values), 5) for name, values in seconds.items()}}
    found["times_ours"] = {}
    for name, values in seconds.items():
        if name == ours:
            continue
        ratios = sorted(other / own for other, own in zip(values, seconds[ours], strict=True))
        found["times_ours"][name] = [round(median(ratios), 3), round(ratios[0], 3), round(ratios[-1], 3)]
    return found


def machine() -> dict[str, Any]:
    """Return what absolute seconds depend on: processor, cores, threads, versions of what is loaded, load."""
    versions = {
        name: sys.modules[name].__version__ for name in ("numpy", "torch", "faiss", "sklearn") if name in sys.modules
    }
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def write(out: Path | None, found: Mapping[str, Any]) -> None:
    """Print the figures as JSON; with `out` also write them there, with the command, the date and the machine."""
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    text = json.dumps({"command": command, "date": date, "machine": machine(), **found}, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
