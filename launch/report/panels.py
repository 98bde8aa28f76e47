"""Rows of pictures: queries with their nearest neighbours, and images with their attention.

Which images are shown is a keyed draw, never a choice: a report must not flatter.

Legend: N evaluated images, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_shards import keyed
from launch.report.collect import Arrays, Evaluation
from launch.report.thumbnails import Thumbnails

NUM_QUERIES = 4  # of either kind
NUM_NEIGHBOURS = 8
NUM_OVERLAYS = 8


@dataclass(frozen=True)
class Neighbour:
    """One retrieved image."""

    uri: str
    name: str
    distance: float
    right: bool


@dataclass(frozen=True)
class Panel:
    """A query and what was retrieved for it, nearest first."""

    uri: str
    name: str
    sample_id: int
    right: bool
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Overlay:
    """An image and its attention."""

    uri: str
    overlay_uri: str
    name: str
    sample_id: int


def first_right(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) bool: is the nearest neighbour of the query's class; and (N,) bool: does the query count at all.

    A query that has no neighbour, or none of its class to find, does not count, as in recall@1.
    """
    labels, nearest = arrays.labels, arrays.neighbours[:, 0]
    return (labels[np.maximum(nearest, 0)] == labels) & (nearest >= 0), arrays.queries()


def choose(rows: np.ndarray, labels: np.ndarray, limit: int, seed: int, purpose: str) -> list[int]:
    """Return up to `limit` of `rows` by a keyed draw, of different classes while there are any."""
    order = [int(r) for r in keyed.generator(seed, purpose).permutation(np.asarray(rows, dtype=np.int64))]
    seen: set[int] = set()
    fresh: list[int] = []
    again: list[int] = []
    for row in order:
        (again if int(labels[row]) in seen else fresh).append(row)
        seen.add(int(labels[row]))
    return (fresh + again)[:limit]


def retrieval_panels(evaluation: Evaluation, thumbnails: Thumbnails, seed: int) -> tuple[list[Panel], list[Panel]]:
    """Return panels of queries whose nearest neighbour is right, and of those where it is wrong."""
    arrays = evaluation.arrays
    if arrays is None:
        return [], []
    right, counts = first_right(arrays)
    chosen = [
        choose(np.flatnonzero(counts & (right == wanted)), arrays.labels, NUM_QUERIES, seed, f"report {wanted}")
        for wanted in (True, False)
    ]
    panels = [[_panel(evaluation, arrays, thumbnails, row) for row in rows] for rows in chosen]
    return [p for p in panels[0] if p], [p for p in panels[1] if p]


def _panel(evaluation: Evaluation, arrays: Arrays, thumbnails: Thumbnails, row: int) -> Panel | None:
    uri = thumbnails.uri(int(arrays.sample_ids[row]))
    if uri is None:
        return None
    label = int(arrays.labels[row])
    found: list[Neighbour] = []
    for other, distance in zip(arrays.neighbours[row], arrays.distances[row], strict=True):
        picture = thumbnails.uri(int(arrays.sample_ids[other])) if other >= 0 else None
        if picture is not None and len(found) < NUM_NEIGHBOURS:
            own = int(arrays.labels[other])
            found.append(Neighbour(picture, evaluation.class_name(own), float(distance), own == label))
    sample = int(arrays.sample_ids[row])
    return Panel(uri, evaluation.class_name(label), sample, bool(found and found[0].right), found)


def attention_overlays(evaluation: Evaluation, thumbnails: Thumbnails, seed: int) -> list[Overlay]:
    """Return images with their attention map laid over, of different classes while there are any."""
    arrays = evaluation.arrays
    if arrays is None or arrays.maps is None:
        return []
    rows = choose(np.arange(len(arrays.labels)), arrays.labels, NUM_OVERLAYS, seed, "report attention")
    shown = []
    for row in rows:
        sample = int(arrays.sample_ids[row])
        plain, laid = thumbnails.uri(sample), thumbnails.overlay_uri(sample, arrays.maps[row])
        if plain and laid:
            shown.append(Overlay(plain, laid, evaluation.class_name(int(arrays.labels[row])), sample))
    return shown
