"""What scores of an embedding cost: ours, our dense way, and the calculator of pytorch-metric-learning.

    python benchmarks/evaluation.py [docs/results/performance/evaluation.json]

Precision at 1, R-precision and MAP@R of 1e5 unit vectors of 128 dimensions, leave-one-out, for two sets: 1,000 classes
of 100, and classes whose sizes fall from 1,000 like the root of 1 / rank. The calculator keeps N x k neighbours, and k
must be the largest R ("max_bin_count"); its default asks for all N - 1 and would take 120 GB and more here. 1,000 keeps
it within 6 GB. "dense" is our own exact distance of every pair, which the screen must equal to the last bit.

Each way runs in a process of its own, so that its peak of resident memory is its own; what libraries and inputs take is
told apart. Ratios are of seconds of the processor, since other work on the machine meets both in turn; wall seconds are
beside them. `NUM_VECTORS` and `NUM_ROUNDS` of the environment make it shorter; the curves against N, D, R and classes
are of our way alone, and their slope is that of a line through the logarithms.
"""

from __future__ import annotations

from benchmarks.timing import write  # isort: skip  (limits threads before numpy is imported)

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from data_shards.errors import UserError
from trainer.metrics.retrieval import retrieval_scores
from trainer.metrics.shortlists import Shortlists

NUM_VECTORS = int(os.environ.get("NUM_VECTORS", "100000"))
NUM_ROUNDS = int(os.environ.get("NUM_ROUNDS", "5"))
WIDTH = 128
NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
CURVES: dict[str, list[dict[str, int]]] = {
    "N": [{"num": n} for n in (10_000, 20_000, 40_000, 80_000)],
    "D": [{"num": 20_000, "width": d} for d in (64, 128, 256, 512)],
    "R": [{"num": 20_000, "per_class": size} for size in (4, 20, 100, 400)],  # 5,000 to 50 classes
}


def drawn(num: int, kind: str = "balanced", width: int = WIDTH, per_class: int = 100) -> tuple[Any, Any]:
    """Return unit vectors (N, D) float32 around a centre per class, and labels (N,), in random order."""
    rng = np.random.default_rng(0)
    if kind == "balanced":
        sizes = np.full(num // per_class, per_class)
    else:
        sizes = np.maximum(1000 / np.sqrt(np.arange(1, num)), 2).astype(int)
        sizes = sizes[: np.searchsorted(sizes.cumsum(), num) + 1]
        sizes[-1] -= sizes.sum() - num
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = rng.standard_normal((len(sizes), width), dtype=np.float32)
    vectors = 0.5 * centres[labels] + rng.standard_normal((len(labels), width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def ours(vectors: Any, labels: Any) -> list[float]:
    found = retrieval_scores(vectors, labels)
    return [found["recall"]["1"], found["r_precision"], found["map_at_r"]]


def dense(vectors: Any, labels: Any) -> list[float]:
    Shortlists.pays = staticmethod(lambda num_items, k: False)  # type: ignore[method-assign]
    return ours(vectors, labels)


def calculator(vectors: Any, labels: Any) -> list[float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    made = AccuracyCalculator(include=NAMES, k="max_bin_count", device=torch.device("cpu"))
    found = made.get_accuracy(vectors, labels)
    return [found[name] for name in NAMES]


WAYS: dict[str, Callable[[Any, Any], list[float]]] = {"ours": ours, "dense": dense, "calculator": calculator}


def memory_mb(field: str) -> float:
    """Return a field of /proc/self/status: "VmRSS", what is resident, or "VmHWM", the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(way: str, arguments: dict[str, Any]) -> None:
    """Print values, seconds and peaks of one way as JSON."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    vectors, labels = drawn(**arguments)
    WAYS[way](*drawn(2000))  # libraries are loaded and warm
    Path("/proc/self/clear_refs").write_text("5")  # the peak of making the inputs is forgotten
    before, wall, processor = memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    values = WAYS[way](vectors, labels)
    took = {"cpu_s": time.process_time() - processor, "wall_s": time.perf_counter() - wall}
    print(json.dumps({**took, "values": values, "extra_mb": memory_mb("VmHWM") - before, "before_mb": before}))


def run(way: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what `measure` prints in a process of its own.

    Raises:
        UserError: it failed.
    """
    words = [sys.executable, __file__, "--way", way, json.dumps(arguments)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{way} of {arguments} ended with {done.returncode}: {done.stderr[-300:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compared(kind: str) -> dict[str, Any]:
    """Return what each way takes of one kind of set, and how many times ours it is: median, least, most of rounds."""
    arguments = {"num": NUM_VECTORS, "kind": kind}
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "calculator": []}
    for number in range(NUM_ROUNDS):
        for way in list(rounds)[:: 1 if number % 2 else -1]:
            rounds[way].append(run(way, arguments))
    found: dict[str, Any] = {}
    for way, results in rounds.items():
        found[way] = {name: round(median(r[name] for r in results), 3) for name in ("cpu_s", "wall_s", "extra_mb")}
        found[way]["values"] = results[0]["values"]
    for name in ("cpu_s", "wall_s", "extra_mb"):
        ratios = sorted(b[name] / a[name] for a, b in zip(rounds["ours"], rounds["calculator"], strict=True))
        found[f"times_ours_{name}"] = [round(each, 2) for each in (median(ratios), ratios[0], ratios[-1])]
    found["largest_difference"] = float(np.abs(np.subtract(*(found[way]["values"] for way in rounds))).max())
    return found


def curve(points: list[dict[str, int]]) -> dict[str, Any]:
    """Return seconds and memory of our way at some points, and the slopes of their logarithms."""
    results = [run("ours", each) for each in points]
    varied = next(name for name in points[0] if len({each[name] for each in points}) > 1)
    steps = np.log([each[varied] for each in points])
    found: dict[str, Any] = {"points": points}
    for name in ("cpu_s", "extra_mb"):
        values = [result[name] for result in results]
        slope = float(np.polyfit(steps, np.log(values), 1)[0])
        found[name] = {"values": [round(value, 3) for value in values], "slope": round(slope, 2), "against": varied}
    return found


def main() -> None:
    """Compare, draw the curves, write or print what came of it."""
    found: dict[str, Any] = {"num_vectors": NUM_VECTORS, "width": WIDTH, "rounds": NUM_ROUNDS}
    for kind in ("balanced", "long_tailed"):
        found[kind] = compared(kind)
    least = {"num": min(NUM_VECTORS, 10_000)}
    one, other = run("ours", least), run("dense", least)
    found["dense"] = {"equal": one["values"] == other["values"], "times_ours_cpu_s": other["cpu_s"] / one["cpu_s"]}
    found["curves"] = {name: curve(points) for name, points in CURVES.items()}
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else None, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        measure(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
