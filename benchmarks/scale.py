"""What a rank's bookkeeping costs with many images: the real order, assignment and blocks, no images.

    python benchmarks/scale.py [docs/results/performance/scale.json]

1e4 to 1e8 sample ids (`MOST_IDS` of the environment: fewer), 1,000 classes, 8 subspaces, global batches of 16,384 with
4 rows per class, 512 ranks. Each size runs in a process of its own: memory is the peak beside the labels and what
Python and its libraries take.

Once per process rows are sorted by class ("once", with the import of what aligns clusters). What an epoch does on every
rank: it counts its share of the rows by old and new clusters, whose sums over ranks are given; the clusters become an
assignment (aligned to the one before, repaired, hashed, counted for an event), the order is made, and for every step
the rank's own rows and the labels of the global batch are computed. Between two clusterings only order and steps are
done ("again"). Fetching images, k-means and training are not in it.

An epoch of N images takes N / (10,000 x 64) seconds at 10,000 images/s on each of 64 nodes, which the share is of.
"""

from __future__ import annotations

from benchmarks.timing import write  # isort: skip  (limits threads before numpy is imported)

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cluster.assignment import RepairRule, from_clusters, overlap
from cluster.kmeans import KMeansResult
from data_shards.errors import UserError
from data_shards.long_grouping import by_class
from data_shards.order import LONG, BatchRule, batches
from data_shards.samplers import blocks, labels_of, parts, shares

SIZES = [n for n in (10**4, 10**5, 10**6, 10**7, 10**8) if n <= float(os.environ.get("MOST_IDS", "1e8"))]
CLASSES, SUBSPACES, RANKS, NODES, IMAGES_PER_S = 1000, 8, 512, 64, 10_000
RULE = BatchRule(16_384, 4)
CLUSTERED = ("overlap", "assignment", "hash", "event", "order", "parts", "steps", "blocks")


def memory_mb(field: str) -> float:
    """Return a field of /proc/self/status in MB: "VmRSS", what is resident, or "VmHWM", the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def numbers(num: int, most: int, salt: int) -> np.ndarray:
    """Return (num,) int32 below `most`, a few at a time: fake labels must not cost more than real ones."""
    out = np.empty(num, dtype=np.int32)
    for start in range(0, num, 2**20):
        part = out[start : start + 2**20]
        part[:] = np.random.default_rng([salt, start]).integers(0, most, len(part), dtype=np.int32)
    return out


def clustered(labels: np.ndarray, version: int) -> KMeansResult:
    """Return clusters as k-means would, made of nothing."""
    kinds, centroids = numbers(len(labels), SUBSPACES, version), np.eye(SUBSPACES, 16, dtype=np.float32)
    counts, reserves = np.zeros(SUBSPACES, np.int64), np.zeros((SUBSPACES, 0), np.int64)
    return KMeansResult(version, centroids, np.arange(len(labels)), kinds, counts, 0.0, 1, 0, True, reserves)


def measure(num: int) -> None:
    """Print seconds of the processor and megabytes of one size as JSON."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        made = work()
        seconds[name] = time.process_time() - began
        return made

    labels = numbers(num, min(CLASSES, num // 8), 0)
    before = from_clusters(clustered(labels, 1), num, SUBSPACES)
    clusters = clustered(labels, 2)
    total = overlap(clusters, num, before, slice(None))  # which ranks add up
    Path("/proc/self/clear_refs").write_text("5")
    resident = memory_mb("VmRSS")
    timed("once", lambda: (by_class(labels), import_module("scipy.optimize")))
    sorted_mb = memory_mb("VmHWM") - resident
    Path("/proc/self/clear_refs").write_text("5")
    resident = memory_mb("VmRSS")
    own = shares(num, 3, RANKS)
    timed("overlap", partial(overlap, clusters, num, before, slice(own.start, own.stop)))
    work = partial(from_clusters, clusters, num, SUBSPACES, before, labels, RepairRule(), None, total)
    assignment = timed("assignment", work)
    timed("event", lambda: (assignment.counts, assignment.nmi_to(before)))
    timed("hash", lambda: assignment.hash)
    peak_of_assignment = memory_mb("VmHWM") - resident
    del clusters, work
    Path("/proc/self/clear_refs").write_text("5")
    resident = memory_mb("VmRSS")
    order = timed("order", lambda: batches(0, 1, assignment.labels, labels, SUBSPACES, RULE))
    cut = timed("parts", lambda: parts(order))
    width = RULE.batch_size // RANKS
    own = [slice(width * 3, width * 4)]

    def steps() -> None:
        for step in range(len(order)):
            cut.part(step, own)
            labels_of(order, step, labels)

    timed("steps", steps)
    timed("order_again", lambda: batches(0, 2, assignment.labels, labels, SUBSPACES, RULE))
    share = timed("blocks", lambda: shares(len(blocks(num, 64)), 3, RANKS))
    digest = hashlib.sha256()
    for step in (0, len(order) // 2, len(order) - 1):
        digest.update(order[step][1].tobytes())
    found: dict[str, Any] = {
        "num": num,
        "steps": len(order),
        "blocks_of_rank": len(share),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "total_s": round(sum(seconds[name] for name in CLUSTERED), 4),
        "again_s": round(seconds["order_again"] + seconds["steps"], 4),
        "epoch_s": num / (IMAGES_PER_S * NODES),
        "sorted_mb": round(sorted_mb, 1),
        "assignment_mb": round(peak_of_assignment, 1),
        "order_mb": round(memory_mb("VmHWM") - resident, 1),
        "labels_mb": round(labels.nbytes / 2**20, 1),
        "sha256_of_three_batches": digest.hexdigest(),
    }
    shares_of = {f"share_{name}": round(found[f"{name}_s"] / found["epoch_s"], 5) for name in ("total", "again")}
    print(json.dumps({**found, **shares_of}))


def run(num: int) -> dict[str, Any]:
    """Return what `measure` prints in a process of its own.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run([sys.executable, __file__, "--size", str(num)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{num} ids ended with {done.returncode}: {done.stderr[-300:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every size, write or print what came of it, with the slopes of the logarithms for long orders."""
    results = [run(num) for num in SIZES]
    large = [each for each in results if each["num"] >= LONG]
    slopes = {}
    if len(large) > 1:
        steps = np.log([each["num"] for each in large])
        for name in ("total_s", "again_s", "sorted_mb", "assignment_mb"):
            slopes[name] = round(float(np.polyfit(steps, np.log([each[name] for each in large]), 1)[0]), 2)
    setting = {"classes": CLASSES, "subspaces": SUBSPACES, "ranks": RANKS, "nodes": NODES, "batch": RULE.batch_size}
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    write(out, {**setting, "images_per_s_of_a_node": IMAGES_PER_S, "sizes": results, "slopes": slopes})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--size"]:
        measure(int(sys.argv[2]))
    else:
        main()
