"""The step by step exchange between ranks, with threads in place of ranks, and what a coordinator that died forgets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cluster.errors import ClusterTimeout, StaleMessage
from cluster.exchange import Exchange, added_up
from cluster.sums import Partial
from data_shards.errors import UserError

TERMS = {"k": 4}


def turn(exchange: Exchange, rank: int, step: int = 0, last: Any = None, **change: Any) -> Any:
    given = {"key": (1, 0), "terms": TERMS, "world_size": 2, "answer": rank * 10, "timeout_s": 5.0} | change
    return exchange.turn(step=step, rank=rank, last=last, **given)


def both(exchange: Exchange, *turns: dict[str, Any]) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return [f.result() for f in [pool.submit(turn, exchange, rank, **given) for rank, given in enumerate(turns)]]


def test_all_get_the_answers_in_the_order_of_ranks() -> None:
    exchange = Exchange()
    for step in range(4):
        assert both(exchange, {"step": step}, {"step": step}) == [(True, [0, 10])] * 2


def test_sums_are_added_up() -> None:
    parts = [Partial(np.full((2, 3), i), np.full(2, i)) for i in (1, 2)]
    (total,) = added_up(parts)
    np.testing.assert_array_equal(total.sums, np.full((2, 3), 3))
    np.testing.assert_array_equal(total.counts, [3, 3])


def test_one_that_knows_nothing_is_told() -> None:
    """Rank 0 had the answers of step 4 when the coordinator died, rank 1 had not."""
    exchange = Exchange()
    assert turn(exchange, 1, 4) == (False, [])
    with ThreadPoolExecutor(2) as pool:
        behind = pool.submit(turn, exchange, 1, 4, ["three"])
        ahead = pool.submit(turn, exchange, 0, 5, ["four"])
        assert behind.result() == (True, ["four"])
        assert turn(exchange, 1, 5) == (True, [0, 10])
        assert ahead.result() == (True, [0, 10])


def test_what_a_rank_leaves_is_there_for_the_others() -> None:
    exchange = Exchange()
    exchange.leave((1, 0), TERMS, 7, ["last"])
    assert turn(exchange, 1, 7, ["before"]) == (True, ["last"])


def test_missing_ranks_stale_keys_and_other_terms() -> None:
    exchange = Exchange()
    with pytest.raises(ClusterTimeout, match=r"waited 0.1 s for sums of ranks \[0\]"):
        turn(exchange, 1, timeout_s=0.1)
    with pytest.raises(UserError, match="disagree"):
        turn(exchange, 0, terms={"k": 5})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(turn, exchange, 0, 1, ["x"])
        with pytest.raises(ClusterTimeout):
            turn(exchange, 0, key=(2, 0), timeout_s=0.2)
        with pytest.raises(StaleMessage):
            waiting.result()
