"""The in-process client: the same interface and the same bytes as the bare k-means."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cluster.controller import ControllerConfig, ControllerCore
from cluster.kmeans import KMeansResult, kmeans
from cluster.local import LocalCluster
from cluster.plan import PlanConfig
from data_shards.errors import UserError

ROWS = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)


def cluster(**options: object) -> LocalCluster:
    return LocalCluster(ControllerCore(ControllerConfig(PlanConfig(4), (8, 8))), **options)  # type: ignore[arg-type]


def blocks(rows: np.ndarray, num: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(part, ROWS[part]) for part in np.array_split(rows, num)]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_recluster_equals_kmeans_for_any_blocks(num_shards: int) -> None:
    expected = kmeans(ROWS, 5, seed=9)
    client = cluster(num_shards=num_shards)
    for version, num in ((0, 1), (1, 7), (2, 300)):
        result = client.begin(version, 5, 9, iter(blocks(np.random.default_rng(num).permutation(300), num)))()
        assert result.version == version
        assert result.centroids.tobytes() == expected.centroids.tobytes()
        np.testing.assert_array_equal(result.labels, expected.labels)
        np.testing.assert_array_equal(result.row_ids, np.arange(300))
        assert result.reserves.shape == (5, 256)
    client.close()


def test_the_same_version_may_be_clustered_again_after_an_error() -> None:
    client = cluster()
    with pytest.raises(UserError, match="5 clusters of 3 rows"):
        client.begin(0, 5, 0, blocks(np.arange(3), 1))()
    assert len(client.begin(0, 5, 0, blocks(np.arange(300), 2))().labels) == 300


def test_ranks_that_gather_get_the_same_bytes() -> None:
    barrier, board = threading.Barrier(2, timeout=10), {}
    results: dict[int, KMeansResult] = {}

    def rank(number: int) -> None:
        def gather(array: np.ndarray) -> list[np.ndarray]:
            board[number] = array
            barrier.wait()
            both = [board[0], board[1]]
            barrier.wait()
            return both

        client = cluster(gather=gather, rank=number)
        results[number] = client.begin(0, 4, 1, blocks(np.arange(number, 300, 2), 3))()

    threads = [threading.Thread(target=rank, args=(r,)) for r in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = kmeans(ROWS, 4, seed=1)
    for result in results.values():
        assert result.centroids.tobytes() == expected.centroids.tobytes()
        np.testing.assert_array_equal(result.labels, expected.labels)


def test_plan_report_snapshot_restore() -> None:
    client = cluster()
    assert client.plan(0).recluster
    assert client.report(0, {"nmi": 0.5}, None) is None
    kept = client.snapshot()
    client.report(1, {"nmi": 0.6}, None)
    client.restore(kept)
    assert client.snapshot() == kept
    assert kept["best"] == {"epoch": 0, "metric": 0.5}
