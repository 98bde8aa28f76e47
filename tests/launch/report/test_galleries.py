"""Galleries of subspaces: clusters that are there are found, images are in order of their distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launch.report import galleries
from launch.report.collect import Run, read_run
from launch.report.thumbnails import Thumbnails, open_thumbnails


def test_clusters_come_largest_first_and_images_nearest_first() -> None:
    rng = np.random.default_rng(0)
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    member = np.repeat([0, 1, 2], [20, 60, 40])
    vectors = middles[member] + rng.normal(0, 0.1, (120, 2))
    found = galleries.nearest_to_centroids(vectors, 3, 5, seed=3)
    assert [set(member[rows].tolist()) for rows in found] == [{1}, {2}, {0}]
    for rows, own in zip(found, (1, 2, 0), strict=True):
        centre = vectors[member == own].mean(axis=0)
        order = np.argsort(((vectors - centre) ** 2).sum(axis=1), kind="stable")
        assert rows.tolist() == [row for row in order.tolist() if member[row] == own][:5]
    again = galleries.nearest_to_centroids(vectors, 3, 5, seed=3)
    assert [rows.tolist() for rows in again] == [rows.tolist() for rows in found]


def test_fewer_points_than_clusters() -> None:
    assert [len(rows) for rows in galleries.nearest_to_centroids(np.zeros((4, 2)), 3, 9, seed=0)] == [4]


@pytest.fixture(scope="module")
def opened(digit_run: Path) -> tuple[Run, Thumbnails]:
    run = read_run(digit_run)
    thumbnails, _ = open_thumbnails(run, "test")
    assert thumbnails is not None
    return run, thumbnails


def test_every_subspace_of_a_run_has_its_images(opened: tuple[Run, Thumbnails]) -> None:
    run, thumbnails = opened
    assert run.pictured is not None
    found = galleries.subspace_galleries(run.pictured, thumbnails, run.seed)
    assert [(each.name, each.width) for each in found] == [("S1", 13), ("S2", 8), ("S3", 11)]
    assert all(len(each.clusters) == galleries.NUM_CLUSTERS for each in found)
    shown = [item for each in found for cluster in each.clusters for item in cluster]
    assert len(shown) == 3 * 3 * galleries.NUM_IMAGES
    assert all(item.uri.startswith("data:image/") and item.name in "0123456789" for item in shown)
