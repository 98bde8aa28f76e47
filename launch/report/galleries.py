"""What each subspace sorts by: its vectors alone in a few clusters, and the images nearest to the centroid of each.

Legend: N evaluated images, d_k width of subspace k, C clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from data_shards import keyed
from launch import palette
from launch.report.collect import Evaluation
from launch.report.maps import has_shape, sample_rows
from launch.report.thumbnails import Thumbnails

NUM_SUBSPACES = 6  # the widest are shown
NUM_CLUSTERS = 3
NUM_IMAGES = 6
MAX_ROWS = 4000


@dataclass(frozen=True)
class Shown:
    """An image of a cluster."""

    uri: str
    name: str


@dataclass(frozen=True)
class SubspaceGallery:
    """A subspace and the images of its clusters, nearest to the centroid first, the largest cluster first."""

    name: str
    colour: str
    width: int
    clusters: list[list[Shown]]


def nearest_to_centroids(vectors: np.ndarray, num_clusters: int, limit: int, seed: int) -> list[np.ndarray]:
    """Return up to `limit` rows of (N, d_k) vectors per cluster of k-means, nearest first; largest cluster first."""
    number = min(num_clusters, len(np.unique(vectors, axis=0)))
    with threadpool_limits(1):
        fitted = KMeans(number, n_init=3, random_state=keyed.key(seed, "report gallery") % 2**32).fit(vectors)
    distances = ((vectors - fitted.cluster_centers_[fitted.labels_]) ** 2).sum(axis=1)
    members = [np.flatnonzero(fitted.labels_ == c) for c in range(number)]
    ordered = [rows[np.argsort(distances[rows], kind="stable")] for rows in members]
    return [rows[:limit] for rows in sorted(ordered, key=len, reverse=True)]


def subspace_galleries(evaluation: Evaluation, thumbnails: Thumbnails, seed: int) -> list[SubspaceGallery]:
    """Return the galleries of the widest subspaces, in the order of the embedding."""
    arrays = evaluation.arrays
    widths = [int(width) for width in evaluation.scores.get("widths") or []]
    if arrays is None or sum(widths) != arrays.vectors.shape[1]:
        return []
    rows = sample_rows(len(arrays.labels), MAX_ROWS, seed)
    starts = np.cumsum([0, *widths])
    widest = sorted(sorted(range(len(widths)), key=lambda k: -widths[k])[:NUM_SUBSPACES])
    found = []
    for k in widest:
        block = arrays.vectors[rows, starts[k] : starts[k + 1]]
        if len(rows) < NUM_CLUSTERS or not has_shape(block):
            continue
        chosen = nearest_to_centroids(block, NUM_CLUSTERS, NUM_IMAGES, seed)
        clusters = [_shown(evaluation, thumbnails, rows[each]) for each in chosen]
        if any(clusters):
            found.append(SubspaceGallery(f"S{k + 1}", palette.subspace_colour(k), widths[k], clusters))
    return found


def _shown(evaluation: Evaluation, thumbnails: Thumbnails, rows: np.ndarray) -> list[Shown]:
    arrays = evaluation.arrays
    assert arrays is not None
    pictures = [(row, thumbnails.uri(int(arrays.sample_ids[row]))) for row in rows.tolist()]
    return [Shown(uri, evaluation.class_name(int(arrays.labels[row]))) for row, uri in pictures if uri is not None]
