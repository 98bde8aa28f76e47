"""Where the ranks meet for one clustering: it starts when all have offered, runs once, and all get the same result.

Plain threads and conditions, nothing of Ray: each rank waits in its own thread, the last one to arrive does the
work. A key is (attempt, version); a newer key supersedes everything older, which is refused from then on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ClusterTimeout, StaleMessage
from data_shards.errors import UserError

Key = tuple[int, int]


@dataclass
class _Table:
    """The offers of one key, and what came of them."""

    terms: Any
    world_size: int
    offers: dict[int, Any] = field(default_factory=dict)
    running: bool = False
    done: bool = False
    result: Any = None
    error: Exception | None = None


class Meeting:
    """Rendezvous of `world_size` ranks per key."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._newest: Key = (-1, -1)
        self._table: _Table | None = None

    def check(self, key: Key) -> None:
        """Raise StaleMessage when a newer attempt or version has arrived."""
        with self._condition:
            if key < self._newest:
                raise StaleMessage(
                    f"Clustering {key[1]} of attempt {key[0]} was superseded by clustering {self._newest[1]} "
                    f"of attempt {self._newest[0]}."
                )

    def join(
        self,
        key: Key,
        rank: int,
        world_size: int,
        terms: Any,
        offer: Any,
        timeout_s: float,
        work: Callable[[dict[int, Any]], Any],
    ) -> Any:
        """Offer for a rank and return the result of `work` on all offers; offering again is fine.

        Raises ClusterTimeout naming the ranks that did not come, StaleMessage when superseded, UserError when the
        ranks do not agree on `terms`, and whatever `work` raised.
        """
        with self._condition:
            table = self._seat(key, world_size, terms)
            if not table.done:
                table.offers[rank] = offer
                if len(table.offers) < world_size or table.running:
                    self._wait(key, table, timeout_s)
            if table.done:
                return _outcome(table)
            table.running = True
        try:
            table.result = work(dict(table.offers))
        except Exception as error:  # every rank must hear of it, whatever it was: it is raised again in each thread
            table.error = error
        with self._condition:
            table.done = True
            if table.error is not None and self._table is table:
                self._table = None  # the next offer of the same key starts over
            self._condition.notify_all()
        return _outcome(table)

    def _seat(self, key: Key, world_size: int, terms: Any) -> _Table:
        self.check(key)
        if key > self._newest or self._table is None:
            self._newest, self._table = key, _Table(terms, world_size)
            self._condition.notify_all()
        if (self._table.terms, self._table.world_size) != (terms, world_size):
            raise UserError(
                f"Ranks disagree about clustering {key[1]}: {terms} of {world_size} ranks against "
                f"{self._table.terms} of {self._table.world_size} ranks."
            )
        return self._table

    def _wait(self, key: Key, table: _Table, timeout_s: float) -> None:
        """Return when the result is there, or when this thread has to do the work."""
        deadline = time.monotonic() + timeout_s
        while not table.done:
            self.check(key)
            left = deadline - time.monotonic()
            if left <= 0:
                missing = sorted(set(range(table.world_size)) - set(table.offers))
                stage = f"embeddings of ranks {missing}" if missing else "k-means"
                raise ClusterTimeout(f"Clustering {key[1]}: waited {timeout_s:g} s for {stage}.")
            self._condition.wait(min(left, 1.0))


def _outcome(table: _Table) -> Any:
    if table.error is not None:
        raise table.error
    return table.result
