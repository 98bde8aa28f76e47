"""Mean and spread over seeds, and which methods are best. Plain functions of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Mark = Literal["best", "second", ""]
DIGITS = 3


@dataclass(frozen=True)
class Summary:
    """A score over seeds: its values by seed, mean, and sample standard deviation (None for fewer than two seeds)."""

    values: dict[int, float]
    mean: float
    std: float | None


def summarised(values: Mapping[int, float]) -> Summary | None:
    """Return the summary of {seed: value}; None when there is none."""
    if not values:
        return None
    numbers = np.array(list(values.values()), dtype=float)
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return Summary(dict(values), float(numbers.mean()), spread)


def marks(means: Mapping[str, float], digits: int = DIGITS) -> dict[str, Mark]:
    """Return who is best and second best among {method: mean}, by the digits that are shown: equal numbers share.

    Nobody is marked where there is nobody to be better than.
    """
    shown = {name: round(mean, digits) for name, mean in means.items()}
    places = sorted(set(shown.values()), reverse=True)
    if len(shown) < 2:
        return dict.fromkeys(shown, "")
    named: dict[float, Mark] = {**({places[1]: "second"} if len(places) > 1 else {}), places[0]: "best"}
    return {name: named.get(value, "") for name, value in shown.items()}
