"""K-means beside the ranks: each keeps a shard with its own rows, and only answers travel.

The answers go through the coordinator (`cluster.exchange`), which may die: it is started again and told by the ranks.

Legend: n rows of a block, F feature width, K centroids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.kmeans import KMeans, KMeansResult, KMeansShard

Turn = Callable[[int, Any, Any], tuple[bool, list[Any]]]  # step, answer, last: `Exchange.turn`
Leave = Callable[[int, Any], None]  # step, last: `Exchange.leave`


class Peers:
    """The shards of all ranks as one group, seen from one of them. Every rank asks the same questions in one order."""

    def __init__(self, shard: KMeansShard, turn: Turn, leave: Leave) -> None:
        self._shard, self._turn, self._leave = shard, turn, leave
        self._step = 0
        self._last: list[Any] | None = None

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Return what the shards of all ranks answer; sums are added up already."""
        answer = getattr(self._shard, method)(*arguments)
        known, found = self._turn(self._step, answer, None)
        if not known:
            _, found = self._turn(self._step, answer, self._last)
        self._step, self._last = self._step + 1, found
        return found

    def leave(self) -> None:
        """Return when all ranks have the last answers, or when the coordinator keeps them for the others."""
        known, _ = self._turn(self._step, None, None)
        if not known:
            self._leave(self._step - 1, self._last)


def fit(
    shard: KMeansShard,
    turn: Turn,
    leave: Leave,
    version: int,
    num_clusters: int,
    seed: int,
    num_reserves: int,
    num_iterations: int,
    check: Callable[[str], None],
) -> KMeansResult:
    """Cluster the rows of all ranks' shards, in every rank alike; the shard is empty afterwards."""
    peers = Peers(shard, turn, leave)
    try:
        result = KMeans(peers, num_iterations, check).fit(version, num_clusters, seed, num_reserves)
        peers.leave()
        return result
    finally:
        shard.drop()
