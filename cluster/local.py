"""The shared objects of a run inside this process: no Ray, the same arithmetic and the same client interface.

Legend: n rows of a block, F feature width, S rows in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cluster.controller import ControllerCore
from cluster.growth import Change
from cluster.index import BackendName
from cluster.kmeans import KMeans, KMeansResult, KMeansShard, LocalShards
from cluster.plan import EpochPlan

Block = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
Gather = Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]

BLOCK_BYTES = 16 << 20  # few blocks, and on Ray the first are on their way while the forward pass goes on
NUM_RESERVES = 256  # rows kept per cluster for the repair of deficient ones


class ClusterClient(Protocol):
    """What a rank sees of the shared processes. Plans, reports and snapshots are asked for by rank 0 only."""

    def plan(self, epoch: int) -> EpochPlan: ...

    def report(
        self, epoch: int, metrics: Mapping[str, Any], scores: list[float] | None, version: int | None = None
    ) -> Change | None: ...

    def snapshot(self) -> dict[str, Any]: ...

    def restore(self, snapshot: Mapping[str, Any]) -> None: ...

    def begin(self, version: int, num_clusters: int, seed: int, blocks: Iterable[Block]) -> Callable[[], KMeansResult]:
        """Called by every rank with its own blocks of ((n,) row ids, (n, F) features), streamed; returns when they are
        handed over, with a function that clusters them, in any thread: every rank gets the same result. Every row
        belongs to one rank."""
        ...

    def close(self) -> None: ...


class LocalCluster:
    """Controller and shards in this process.

    With more than one rank and no Ray, `gather` (an all-gather of numpy arrays of one dtype, any length) makes every
    rank cluster all rows: the same bytes on each, at the price of the memory. `attempt` must be above every earlier
    one of the same journal (default: one above the last).
    """

    def __init__(
        self,
        controller: ControllerCore,
        *,
        attempt: int | None = None,
        num_shards: int = 1,
        num_iterations: int = 100,
        backend: BackendName = "auto",
        num_threads: int = 1,
        num_reserves: int = NUM_RESERVES,
        gather: Gather | None = None,
        rank: int = 0,
    ) -> None:
        self._controller, self._gather = controller, gather
        self._attempt = controller.attempt + 1 if attempt is None else attempt
        self._shards = [KMeansShard(backend, num_threads) for _ in range(num_shards)]
        self._num_iterations, self._num_reserves = num_iterations, num_reserves
        if rank == 0:
            controller.begin(self._attempt)

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        return self._controller.plan(epoch, self._attempt)

    def report(
        self, epoch: int, metrics: Mapping[str, Any], scores: list[float] | None, version: int | None = None
    ) -> Change | None:
        """Report an epoch; return the change of the partition that follows it."""
        return self._controller.report(epoch, self._attempt, metrics, scores, version)

    def snapshot(self) -> dict[str, Any]:
        """Return the controller's state for a checkpoint."""
        return self._controller.snapshot()

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Give the controller the state of a checkpoint."""
        self._controller.restore(snapshot)

    def begin(self, version: int, num_clusters: int, seed: int, blocks: Iterable[Block]) -> Callable[[], KMeansResult]:
        """Take the rows of all ranks, to cluster them; see `ClusterClient`."""
        for shard in self._shards:
            shard.reset(version)
        for number, (row_ids, features) in enumerate(
            joined(blocks) if self._gather is None else self._gathered(blocks)
        ):
            self._shards[number % len(self._shards)].put(version, row_ids, features)
        return partial(self._cluster, version, num_clusters, seed)

    def _cluster(self, version: int, num_clusters: int, seed: int) -> KMeansResult:
        fit = KMeans(LocalShards(self._shards), self._num_iterations)
        try:
            return fit.fit(version, num_clusters, seed, self._num_reserves)
        finally:
            for shard in self._shards:
                shard.drop()

    def _gathered(self, blocks: Iterable[Block]) -> Iterable[Block]:
        assert self._gather is not None
        own = list(blocks)
        ids = np.concatenate([np.asarray(i, dtype=np.int64) for i, _ in own] or [np.empty(0, dtype=np.int64)])
        features = np.concatenate(
            [np.asarray(f, dtype=np.float32).ravel() for _, f in own] or [np.empty(0, np.float32)]
        )
        for all_ids, flat in zip(self._gather(ids), self._gather(features), strict=True):
            if len(all_ids):
                yield all_ids, flat.reshape(len(all_ids), -1)

    def close(self) -> None:
        """Let go of the shards; closing twice is fine."""
        self._shards = []


def joined(
    blocks: Iterable[Block], num_bytes: int = BLOCK_BYTES
) -> Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Join small blocks into larger ones of about `num_bytes`, in order.

    numpy only: putting a torch tensor costs 20 times as much.
    """
    ids: list[npt.NDArray[np.int64]] = []
    rows: list[npt.NDArray[np.float32]] = []
    size = 0
    for row_ids, features in blocks:
        ids.append(np.asarray(row_ids, dtype=np.int64))
        rows.append(np.asarray(features, dtype=np.float32))
        size += rows[-1].nbytes
        if size >= num_bytes:
            yield np.concatenate(ids), np.concatenate(rows)
            ids, rows, size = [], [], 0
    if size:
        yield np.concatenate(ids), np.concatenate(rows)
