"""Images per second of `subspace train` with one rank and with two, one thread each, and what an evaluation takes.

    subspace bench ranks --out docs/results/performance/ranks.json

ResNet-18 cut at stage 3, 64 px, batch 32, one epoch of 2,872 images and one validation of 719: the setting in which the
released ADSL code was timed: 177 images/s on two quiet cores from JPEG files, 719 images evaluated in 1.7 s. Whole runs
by the command line, on shards made of the JPEG files of $SUBSPACE_DATA/ham10000_part, else on random pixels; figures
are read from metrics.jsonl.
"""

from __future__ import annotations

from benchmarks import timing  # isort: skip - first: it limits threads

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.random_shards import write_random_shards

ROOT = Path(__file__).parents[1]
WARM_UP = 10  # steps that do not count
RELEASED = {"images_per_s": 177.0, "validation_s": 1.7}
SETTINGS = ("cluster.backend=local", "growth.enabled=false", "train.epochs=1", "optim.warmup_epochs=0")
MINER = "objective.miner={name: nearest_beyond_cutoff}"


def make_shards(folder: Path) -> str:
    """Make the shards; return of what."""
    data = os.environ.get("SUBSPACE_DATA")
    if data is None:
        write_random_shards(folder, (2_872, 719), 7, 64, 3)
        return "random pixels"
    words = ["shards", "build", f"table:{data}/ham10000_part/labels.csv", str(folder), "--size", "64"]
    subprocess.run([sys.executable, "-m", "launch", *words], cwd=ROOT, check=True, capture_output=True)
    return "ham10000_part"


def train(shards: Path, folder: Path, num_ranks: int, found: list[dict[str, float]]) -> Callable[[], None]:
    """Return what trains an epoch in a run folder of its own, and adds its figures to a list."""

    def run() -> None:
        place = folder / f"{num_ranks}-{len(found)}"
        words = ["configs/adsl/ham10000_cpu.yaml", f"data.shards={shards}", *SETTINGS, MINER, "launch.trackers=[]"]
        command = [sys.executable, "-m", "launch", "train", *words, "--nproc", str(num_ranks), "--run-dir", str(place)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        found.append(figures(place / "metrics.jsonl"))

    return run


def figures(path: Path) -> dict[str, float]:
    """Return images per second of the steps, and the seconds from the last step to the scores."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    times = [line["time"] for line in lines if "loss" in line][WARM_UP:]
    scored = next(line["time"] for line in lines if "validation" in line)
    return {"images_per_s": 32 * (len(times) - 1) / (times[-1] - times[0]), "validation_s": scored - times[-1]}


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = make_shards(folder / "shards")
        runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
        timing.interleaved({str(n): train(folder / "shards", folder, n, runs[n]) for n in runs}, repeats=5)
    medians = {
        f"{n} ranks": {key: round(median(each[key] for each in found), 2) for key in found[0]}
        for n, found in runs.items()
    }
    pairs = sorted(two["images_per_s"] / one["images_per_s"] for one, two in zip(runs[1], runs[2], strict=True))
    rate = medians["2 ranks"]["images_per_s"] / RELEASED["images_per_s"]
    found = {"two_against_one": [round(r, 3) for r in (median(pairs), pairs[0], pairs[-1])]}
    timing.write(out, {"images": images, "median": medians, **found, "two_against_released": round(rate, 2)})


if __name__ == "__main__":
    main()
