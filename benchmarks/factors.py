"""How many subspaces a growth rule makes of a known number of factors, and what each of them knows about each factor.

    python benchmarks/factors.py runs/factors [docs/results/factors/information.json]

Runs of configs/compare/factors.yaml. Per data set (one to four factors make its classes) and rule: K at the end, per
seed; bits that the whole test embedding and every subspace tell of every factor, per seed; and over seeds, of each
factor, how much more the subspace that knows it best tells than the one that knows it least, as a share of the best.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any


def test_scores(methods: Path) -> dict[str, list[dict[str, Any]]]:
    """Return, of every method of a data set, the test scores of its seeds."""
    return {
        method.name: [json.loads(path.read_text()) for path in sorted(method.glob("seed-*/evaluation/test.json"))]
        for method in sorted(methods.iterdir())
    }


def summed_up(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the runs of one rule on one data set show."""
    blocks = [[block["information"] for block in scores["per_subspace"]] for scores in seeds]
    return {
        "subspaces": [len(known) for known in blocks],
        "widths": [scores["widths"] for scores in seeds],
        "whole": [scores["information"] for scores in seeds],
        "per_subspace": blocks,
        "spread": {factor: _spread(blocks, factor) for factor in seeds[0]["information"]},
    }


def _spread(blocks: list[list[dict[str, float]]], factor: str) -> float | None:
    """Return (most - least) / most bits of a factor among subspaces, mean over the seeds that have two or more."""
    found = [[block[factor] for block in known] for known in blocks if len(known) > 1]
    shares = [(max(bits) - min(bits)) / max(bits) for bits in found if max(bits) > 0]
    return statistics.mean(shares) if shares else None


def main() -> None:
    """Print K per rule, and write everything."""
    root = Path(sys.argv[1]) / "runs"
    table = {
        data: {method: summed_up(seeds) for method, seeds in test_scores(root / data).items()}
        for data in ("one-factor", "two-factors", "three-factors", "four-factors")
    }
    for data, methods in table.items():
        print(data, {method: found["subspaces"] for method, found in methods.items()})
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
