"""Do the clusters of the embedding agree with the classes?

K-means with as many clusters as classes, from several keyed seeds: one seed moves NMI by a few points, so the mean
and the spread are reported (the published code runs one restart). NMI uses the arithmetic mean of the entropies.

Legend: N samples, D embedding width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from cluster.kmeans import kmeans

Array = npt.NDArray[Any]


def clustering_scores(
    vectors: Array | torch.Tensor, labels: Array | torch.Tensor, seeds: int = 10, num_iterations: int = 100
) -> dict[str, dict[str, float]]:
    """Return {"nmi": {"mean", "std"}, "ami": {"mean", "std"}} over k-means runs with seeds 0 .. seeds - 1.

    `vectors` (N, D), `labels` (N,); the number of clusters is the number of classes that occur.
    """
    classes = np.asarray(torch.as_tensor(labels).cpu())
    found = clusterings(vectors, len(np.unique(classes)), seeds, num_iterations)
    return {
        "nmi": _spread([normalized_mutual_info_score(classes, each) for each in found]),
        "ami": _spread([adjusted_mutual_info_score(classes, each) for each in found]),
    }


def clusterings(
    vectors: Array | torch.Tensor, num_clusters: int, seeds: int = 10, num_iterations: int = 100
) -> list[Array]:
    """Return (N,) cluster numbers of k-means runs with seeds 0 .. seeds - 1 on (N, D) vectors."""
    features = np.ascontiguousarray(torch.as_tensor(vectors).detach().cpu().numpy(), dtype=np.float32)
    # numpy's screen is the fastest on one thread at these sizes (benchmarks/kmeans.py); labels are the same for all.
    return [kmeans(features, num_clusters, seed, num_iterations, backend="numpy").labels for seed in range(seeds)]


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}
