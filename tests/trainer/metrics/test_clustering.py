"""Agreement of clusters and classes: against entropies written out, and at the two ends."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.kmeans import kmeans
from trainer.metrics.clustering import clustering_scores, clusterings


def blobs(spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 200)
    return (rng.standard_normal((200, 5)) * spread + 10 * np.eye(4, 5)[labels]).astype(np.float32), labels


def written_out_nmi(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.array([[np.mean((a == i) & (b == j)) for j in np.unique(b)] for i in np.unique(a)])
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    mutual = sum(p * np.log(p / (rows[i] * columns[j])) for (i, j), p in np.ndenumerate(joint) if p)
    return 2 * mutual / -(rows @ np.log(rows) + columns @ np.log(columns))


def test_mean_and_spread_are_over_seeds() -> None:
    vectors, labels = blobs(4.0)
    found = clustering_scores(vectors, labels, seeds=3)
    each = [written_out_nmi(labels, np.asarray(kmeans(vectors, 4, seed=seed).labels)) for seed in range(3)]
    assert found["nmi"] == pytest.approx({"mean": np.mean(each), "std": np.std(each)})


def test_separate_blobs_score_one_and_shuffled_labels_nothing() -> None:
    vectors, labels = blobs(0.1)
    assert clustering_scores(vectors, labels, seeds=1)["nmi"]["mean"] == pytest.approx(1)
    shuffled = np.random.default_rng(1).permutation(labels)
    found = clustering_scores(vectors, shuffled, seeds=1)
    assert found["ami"]["mean"] == pytest.approx(0, abs=0.03)
    assert found["nmi"]["mean"] > found["ami"]["mean"]


def test_clusterings_are_those_that_are_scored() -> None:
    vectors, labels = blobs(4.0)
    each = clusterings(vectors, 4, seeds=3)
    assert [found.shape for found in each] == [(200,)] * 3
    mean = np.mean([written_out_nmi(labels, found) for found in each])
    assert clustering_scores(vectors, labels, seeds=3)["nmi"]["mean"] == pytest.approx(mean)
