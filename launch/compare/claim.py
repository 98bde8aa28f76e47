"""Does the reference keep up with the best of its rivals, and as steadily as the rest? Computed, never typed.

Keeping up: the reference's mean is at least the best rival's mean less one standard deviation of that rival. Steady:
its standard deviation is at most the median of those of all methods. Both need two seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from launch.compare.summary import Summary
from launch.compare.sweep_file import Sweep


@dataclass(frozen=True)
class Verdict:
    """One metric of one dataset; None where there are too few runs to say."""

    metric: str
    reference: Summary
    rival: str
    best: Summary
    median_std: float | None
    keeps_up: bool | None
    steady: bool | None


def verdicts(sweep: Sweep, scores: Mapping[str, Mapping[str, Summary]]) -> list[Verdict]:
    """Return the verdict on every metric of the claim from {method: {metric: summary}}; [] without a rival that ran."""
    rivals = [method for method in sweep.rivals() if scores[method]]
    reference = scores[sweep.reference]
    if not rivals or not reference:
        return []
    return [_verdict(metric, reference[metric], rivals, scores) for metric in sweep.claim.metrics]


def _verdict(
    metric: str, reference: Summary, rivals: list[str], scores: Mapping[str, Mapping[str, Summary]]
) -> Verdict:
    rival = max(rivals, key=lambda method: scores[method][metric].mean)
    best = scores[rival][metric]
    stds = [std for found in scores.values() if metric in found and (std := found[metric].std) is not None]
    middle = median(stds) if stds else None
    keeps_up = None if best.std is None else reference.mean >= best.mean - best.std
    steady = None if reference.std is None or middle is None else reference.std <= middle
    return Verdict(metric, reference, rival, best, middle, keeps_up, steady)
