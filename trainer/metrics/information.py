"""What an embedding knows about a factor of the images: mutual information, by clusters against levels.

The vectors are clustered, the factor is cut into levels of equally many samples, and the information between the two
partitions is counted in bits. A finite sample shows some information by chance alone (about (clusters - 1)(levels - 1)
/ (2 N ln 2) bits: Miller 1955, "Note on the bias of information estimates"), so the mean over shuffled factors is
taken off. Clusters lose what is finer than they are: this is a lower bound, for comparing subspaces with each other.

Legend: N samples, d width of the vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import mutual_info_score

from cluster.kmeans import kmeans
from data_shards import keyed

Array = npt.NDArray[Any]
CLUSTERS, LEVELS, SHUFFLES = 16, 8, 20


def information(vectors: Array, factors: dict[str, Array], seed: int = 0) -> dict[str, float]:
    """Return the bits (0 to 3 = log2 of 8 levels) that (N, d) `vectors` tell of each factor (N,), beyond chance."""
    if not factors or len(vectors) < CLUSTERS:
        return {}
    features = np.ascontiguousarray(vectors, dtype=np.float32)
    clusters = kmeans(features, CLUSTERS, seed, backend="numpy").labels
    return {name: _bits(clusters, levels_of(values), seed) for name, values in factors.items()}


def levels_of(values: Array) -> npt.NDArray[np.int64]:
    """Return (N,) numbers 0..7: cut where equally many samples are on either side; equal values stay together."""
    cuts = np.quantile(values, np.arange(1, LEVELS) / LEVELS)
    return np.searchsorted(cuts, values, side="right")


def _bits(clusters: Array, levels: Array, seed: int) -> float:
    generator = keyed.generator(seed, "shuffled factor")
    chance = [mutual_info_score(clusters, generator.permutation(levels)) for _ in range(SHUFFLES)]
    return float(max(mutual_info_score(clusters, levels) - np.mean(chance), 0.0) / math.log(2))
