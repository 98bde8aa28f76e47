"""Otsu's threshold: where a histogram falls into two parts.

Otsu 1979, "A Threshold Selection Method from Gray-Level Histograms" (https://doi.org/10.1109/TSMC.1979.4310076).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def otsu(shades: npt.NDArray[np.uint8]) -> int:
    """Return the shade t that parts values <= t from those above with the least variance within the parts.

    An image of one shade gives that shade.
    """
    counts = np.bincount(shades.ravel(), minlength=256).astype(np.float64)
    number, total = counts.cumsum(), (counts * np.arange(256)).cumsum()
    rest = number[-1] - number
    parted = (number > 0) & (rest > 0)
    if not parted.any():
        return int(shades.flat[0])
    means = total / np.maximum(number, 1), (total[-1] - total) / np.maximum(rest, 1)
    return int(np.where(parted, number * rest * (means[0] - means[1]) ** 2, -1.0).argmax())
