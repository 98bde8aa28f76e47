"""How many subspaces the growth rules make of nothing: random saliencies, and a score that is only noise.

    python benchmarks/growth_null.py [docs/results/growth_null.json]

Two questions. "Accepted": every split that the rule can make is made, with random scores of a given distribution, until
it refuses; then K is decided by the shape of the distribution alone. "Run": 250 epochs whose validation score is one
number plus independent noise, the saliencies Gaussian; then K is what luck makes of it, since nothing is learned.

Legend: D embedding width (128), K subspaces.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.growth import EpochReport, Growth, PlateauGrowth, Rollback

NUM_DIMS, EPOCHS, REPETITIONS = 128, 250, 400
RULES = {
    "threshold (published)": PlateauGrowth(),
    "top fraction 0.5": PlateauGrowth(select="top_fraction"),
    "threshold, validated": PlateauGrowth(accept="validated"),
    "top fraction 0.5, validated": PlateauGrowth(select="top_fraction", accept="validated"),
}
Draw = Callable[[np.random.Generator, int], np.ndarray]
SCORES: dict[str, Draw] = {
    "gaussian": lambda rng, n: rng.standard_normal(n),
    "uniform": lambda rng, n: rng.random(n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "student t, 3": lambda rng, n: rng.standard_t(3, n),
}


def accepted(rule: PlateauGrowth, draw: Draw, rng: np.random.Generator) -> int:
    """Return K when the rule refuses."""
    widths = [NUM_DIMS]
    while (selected := rule.select_neurons(draw(rng, widths[-1]))) is not None:
        widths[-1:] = [len(selected), widths[-1] - len(selected)]
    return len(widths)


def in_a_run(rule: PlateauGrowth, rng: np.random.Generator) -> int:
    """Return K at the end of a run in which the score is noise."""
    history: list[EpochReport] = []
    widths: tuple[int, ...] = (NUM_DIMS,)
    for epoch in range(EPOCHS):
        metric = 0.5 + 0.01 * float(rng.standard_normal())
        may_grow = epoch + rule.min_epochs < EPOCHS
        scores = rng.standard_normal(NUM_DIMS)
        change = rule.decide([*history, EpochReport(epoch, metric)], widths, scores, 0, may_grow)
        grew, back = isinstance(change, Growth), isinstance(change, Rollback)
        history.append(EpochReport(epoch, metric, grew, back, str(epoch)))
        widths = widths if change is None else change.widths
    return len(widths)


def spread(values: list[int]) -> dict[str, Any]:
    low, median, high = np.percentile(values, [5, 50, 95])
    return {"median": float(median), "5 %": float(low), "95 %": float(high), "repetitions": len(values)}


def main() -> None:
    found: dict[str, Any] = {"num_dims": NUM_DIMS, "epochs": EPOCHS, "accepted": {}, "run": {}}
    for name, rule in RULES.items():
        if rule.accept == "always":
            found["accepted"][name] = {
                kind: spread([accepted(rule, draw, np.random.default_rng(i)) for i in range(REPETITIONS)])
                for kind, draw in SCORES.items()
            }
        found["run"][name] = spread([in_a_run(rule, np.random.default_rng(i)) for i in range(REPETITIONS)])
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
