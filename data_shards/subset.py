"""A part of a training split, for studies of how much data is enough.

Which images are in it is a function of (seed, sample id) alone, so it is the same on every rank and after a restart.
The images of a smaller part are among those of a larger one: two points of a study differ by added images only.

Legend: S rows of a split.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_shards import keyed

_LEAST = 2  # of a class: one image alone has no positive pair


def part_of(
    labels: npt.NDArray[np.int32], sample_ids: npt.NDArray[np.int64], fraction: float, seed: int
) -> npt.NDArray[np.int64]:
    """Return the rows, ascending, of a keyed `fraction` (0 < f <= 1) of every class; 2 images of it at least.

    `labels` and `sample_ids` are (S,). A class that has fewer than two images keeps what it has.
    """
    draws = keyed.fold(keyed.key(seed, "fraction"), sample_ids)
    by_class = np.lexsort((draws, labels))
    counts = np.unique(labels, return_counts=True)[1]
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.maximum(np.rint(fraction * counts), _LEAST)
    return np.sort(by_class[place < np.repeat(wanted, counts)])
