"""What region vectors cost: one contraction over pixels against the product (B, K, d, H, W) that is summed afterwards.

    python benchmarks/regions.py [docs/results/regions.json]

Forward and backward of the region vectors of B = 4 images of 448 pixels with K = 16 clusters and d = 32 channels. (The
published step has 5 B of them: 8.2 GB for one such product, and as much again for its gradient.) Each way runs in a
process of its own, so that its peak of resident memory is its own; what inputs and their gradients take is told apart.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

IMAGES, CLUSTERS, CHANNELS, SIDE = 4, 16, 32, 448
REPETITIONS = 5


def naive(vectors: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    return (clusters[:, :, None] * vectors[:, None]).mean(dim=(3, 4))


def contracted(vectors: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    return clusters.flatten(2) @ vectors.flatten(2).mT / clusters[0, 0].numel()


WAYS = {"naive": naive, "contraction": contracted}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(way: str, images: int) -> None:
    """Print seconds and peaks of one way as JSON; "inputs" only makes inputs and gradients."""
    vectors = torch.randn(images, CHANNELS, SIDE, SIDE).requires_grad_()
    clusters = torch.rand(images, CLUSTERS, SIDE, SIDE).requires_grad_()
    vectors.grad, clusters.grad = torch.zeros_like(vectors), torch.zeros_like(clusters)
    before, seconds = peak_mb(), []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        WAYS[way](vectors, clusters).square().sum().backward()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": statistics.median(seconds), "peak_mb": peak_mb(), "inputs_mb": before}))


def main() -> None:
    """Measure both ways, write or print what came of it."""
    found = {}
    for way, images in (("contraction", IMAGES), ("naive", IMAGES)):
        words = [sys.executable, __file__, "--way", way, str(images)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        found[way] = (
            json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-300:] or done.returncode}
        )
    if all("peak_mb" in each for each in found.values()):
        extra = {way: each["peak_mb"] - each["inputs_mb"] for way, each in found.items()}
        found["ratio"] = {
            "memory_beside_inputs": extra["naive"] / max(extra["contraction"], 1.0),
            "seconds": found["naive"]["seconds"] / found["contraction"]["seconds"],
        }
    report = {"images": IMAGES, "clusters": CLUSTERS, "channels": CHANNELS, "side": SIDE, **found}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main()
