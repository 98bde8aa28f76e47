"""What deterministic mode costs: the time of a training step against plain DistributedDataParallel, as a ratio.

    python benchmarks/deterministic.py [--config configs/smoke/growth.yaml] [--nproc 2] [--pairs 5] [key=value ...]

Whole runs of both modes take turns, so that other load on the machine meets both. A step's time is that between two
lines of metrics.jsonl within an epoch, the median of a run. Prints one JSON line per pair and one with the median
ratio; the mode includes AVX2 instead of the processor's widest instructions, one thread and the sum by the fixed tree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORDS = ("cluster.backend=local", "evaluate.nmi_seeds=1", "train.steps_per_epoch=60", "train.epochs=2")


def step_ms(run: Path) -> float:
    """Return the median milliseconds of a step."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    taken = [line for line in lines if "loss" in line]
    return 1000 * statistics.median(b["time"] - a["time"] for a, b in pairwise(taken) if a["epoch"] == b["epoch"])


def measure(folder: Path, name: str, options: argparse.Namespace, *words: str) -> float:
    """Train one run and return its step time."""
    run = folder / name
    command = [sys.executable, "-m", "launch", "train", options.config, f"data.shards={folder / 'shards'}", *WORDS]
    command += ["--run-dir", str(run), "--nproc", str(options.nproc), *options.overrides, *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return step_ms(run)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/smoke/growth.yaml")
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(options.pairs):
            plain = measure(Path(folder), f"plain-{pair}", options)
            fixed = measure(Path(folder), f"deterministic-{pair}", options, "--deterministic")
            ratios.append(fixed / plain)
            found = {"plain_ms": round(plain, 2), "deterministic_ms": round(fixed, 2), "ratio": round(ratios[-1], 3)}
            print(json.dumps({"pair": pair, **found}), flush=True)
    spread = {"least": round(min(ratios), 3), "greatest": round(max(ratios), 3)}
    print(json.dumps({"nproc": options.nproc, "ratio": round(statistics.median(ratios), 3), **spread}))


if __name__ == "__main__":
    main()
