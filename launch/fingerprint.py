"""What besides configuration and data can change a bit of the result: versions, threads, instruction sets, the device.

Matrix products add up in an order that depends on the width of the processor's vectors and on the number of threads;
torch promises nothing across releases. So a deterministic run pins what can be pinned, before torch is imported, and
every run keeps the rest, so that going on elsewhere is not mistaken for the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from data_shards.files import write_text

log = logging.getLogger(__name__)
FAISS = ("faiss-cpu", "faiss-gpu")


def pinned() -> dict[str, str]:
    """Return the variables of a deterministic run, to be set before torch is imported.

    The vectors of AVX2 are what nearly every server has, so that one run may use old and new machines.
    """
    pins = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if "avx2" in _processor().get("flags", "").split():
        pins |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    return pins


def fingerprint() -> dict[str, Any]:
    """Return the environment of this process, as JSON."""
    import numpy as np
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "faiss": _faiss(),
        "num_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "the processor's widest"),
        "device": gpu or _processor().get("model name", platform.machine()),
    }


def short_hash(found: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that differ when anything in a fingerprint does."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return {name: [before, now]} of what differs; nothing when `before` is empty, as in old checkpoints."""
    names = [name for name in {**before, **now} if before and before.get(name) != now.get(name)]
    return {name: [before.get(name), now.get(name)] for name in names}


def warn(changed: Mapping[str, list[Any]]) -> None:
    """Say in one line what changed since the checkpoint."""
    if changed:
        said = ", ".join(f"{name} was {old}, is {new}" for name, (old, new) in changed.items())
        log.warning("the environment is not that of the checkpoint, results may differ in the last bits: %s", said)


def unlike_ranks(found: Mapping[str, Any]) -> list[int]:
    """Return, on every rank, the ranks whose fingerprint is not rank 0's; all ranks ask together."""
    from trainer import distributed

    hashes = distributed.gather_number(int(short_hash(found), 16))
    unlike = [rank for rank, value in enumerate(hashes) if value != hashes[0]]
    if distributed.rank() == 0 and unlike:
        log.warning("ranks %s run in another environment than rank 0: no bit of the result is promised", unlike)
    elif distributed.rank() in unlike:
        log.warning("environment of this rank: %s", json.dumps(found))
    return unlike


def store(run: Path, found: Mapping[str, Any]) -> None:
    """Put the fingerprint of the ranks into RUN/env.json, which the launcher wrote."""
    path = run / "env.json"
    env = json.loads(path.read_text()) if path.exists() else {}
    env["fingerprint"] = {**found, "hash": short_hash(found)}
    write_text(path, json.dumps(env, indent=1) + "\n")


def _faiss() -> str | None:
    for name in FAISS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _processor() -> dict[str, str]:
    """Return what the kernel says of the first processor; nothing where there is no /proc."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
