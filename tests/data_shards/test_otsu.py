"""Otsu's threshold by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.otsu import otsu


@pytest.mark.parametrize("seed", range(6))
def test_otsu_has_the_least_variance_within(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dark, bright = rng.normal(60, 20, 300 + 50 * seed), rng.normal(150, 30, 500)
    shades = np.clip(np.concatenate([dark, bright]), 0, 255).astype(np.uint8)

    def within(t: int) -> float:
        parts = [p.astype(float) for p in (shades[shades <= t], shades[shades > t]) if len(p)]
        return sum(len(p) * p.var() for p in parts)

    assert within(otsu(shades)) == pytest.approx(min(within(t) for t in range(256)))


def test_otsu_of_one_shade() -> None:
    assert otsu(np.full((5, 5), 77, np.uint8)) == 77
