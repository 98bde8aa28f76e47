"""K-means beside the ranks: the bytes of one process, whenever the coordinator forgets what it was told."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from cluster.errors import ClusterTimeout
from cluster.exchange import Exchange
from cluster.kmeans import KMeansResult, KMeansShard, kmeans
from cluster.peers import fit

TERMS = {"k": 5}


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("forgets", [None, 3, 11, 40])
def test_ranks_get_the_bytes_of_one_process_whenever_the_coordinator_dies(num_ranks: int, forgets: int | None) -> None:
    rows = np.random.default_rng(0).standard_normal((600, 9)).astype(np.float32)
    expected = kmeans(rows, 5, 3)
    deadline = time.monotonic() + 60.0
    lock, state = threading.Lock(), {"exchange": Exchange(), "calls": 0}

    def rank_of(rank: int) -> KMeansResult:
        def ask(method: str, *arguments: Any) -> Any:
            while True:
                with lock:
                    state["calls"] += 1
                    if state["calls"] == forgets:
                        state["exchange"] = Exchange()  # those who wait in the old one find no answer there
                    exchange = state["exchange"]
                try:
                    return getattr(exchange, method)((0, 0), TERMS, *arguments)
                except ClusterTimeout:  # in an old one, or others are slow
                    if time.monotonic() > deadline:
                        raise

        shard, mine = KMeansShard(), np.arange(rank, 600, num_ranks)
        shard.put(0, mine, rows[mine])

        def turn(step: int, answer: Any, last: Any) -> Any:
            return ask("turn", step, rank, num_ranks, answer, last, 1.0)

        return fit(shard, turn, partial(ask, "leave"), 0, 5, 3, 0, 100, lambda stage: None)

    with ThreadPoolExecutor(num_ranks) as pool:
        for result in pool.map(rank_of, range(num_ranks)):
            for name, value in expected.to_arrays().items():
                np.testing.assert_array_equal(getattr(result, name), value)
