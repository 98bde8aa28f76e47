"""What ranks tell each other, step by step, while each of them runs the same k-means over its own rows.

Every rank answers a question about its rows, and all get all answers, sums added up: an all-gather through one process,
with plain threads and conditions. It lets training go on with its own collectives meanwhile. A key is (attempt,
version); a newer one supersedes everything older. Nobody is more than one step ahead, so the answers of two steps
are enough, and who has forgotten them (this process died) is told by a rank.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from cluster.errors import ClusterTimeout, StaleMessage
from cluster.meeting import Key
from cluster.sums import Partial
from data_shards.errors import UserError


class Exchange:
    """The answers of `world_size` ranks, one step after the other."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._key: Key = (-1, -1)
        self._begin((-1, -1), None)

    def _begin(self, key: Key, terms: Any) -> None:
        self._key, self._terms = key, terms
        self._offers: dict[int, dict[int, Any]] = {}
        self._told: dict[int, list[Any]] = {}

    def turn(
        self, key: Key, terms: Any, step: int, rank: int, world_size: int, answer: Any, last: Any, timeout_s: float
    ) -> tuple[bool, list[Any]]:
        """Give a rank's answer of a step and return (True, what all answered); repeating a turn is fine.

        (False, []): the step before is not known here, tell what came of it as `last`. Raises ClusterTimeout naming
        the ranks that did not come, StaleMessage when superseded, UserError when the ranks do not agree on `terms`.
        """
        deadline = time.monotonic() + timeout_s
        with self._condition:
            self._join(key, terms)
            if step and step - 1 not in self._told:
                if last is None:
                    return False, []
                self._tell(step - 1, last)
            offers = self._offers.setdefault(step, {})
            offers[rank] = answer
            if step not in self._told and len(offers) == world_size:
                self._tell(step, added_up([offers[r] for r in range(world_size)]))
            while step not in self._told:
                left = deadline - time.monotonic()
                if left <= 0:
                    missing = sorted(set(range(world_size)) - set(offers))
                    raise ClusterTimeout(f"Clustering {key[1]}: waited {timeout_s:g} s for sums of ranks {missing}.")
                self._condition.wait(min(left, 1.0))
                self._check(key)
            return True, self._told[step]

    def leave(self, key: Key, terms: Any, step: int, last: Any) -> None:
        """Take from a rank that goes what came of its last step, for ranks that may still ask for it."""
        with self._condition:
            self._join(key, terms)
            self._tell(step, last)

    def _join(self, key: Key, terms: Any) -> None:
        self._check(key)
        if key > self._key:
            self._begin(key, terms)
            self._condition.notify_all()
        if terms != self._terms:
            raise UserError(f"Ranks disagree about clustering {key[1]}: {terms} against {self._terms}.")

    def _check(self, key: Key) -> None:
        if key < self._key:
            raise StaleMessage(f"Clustering {key} was superseded by clustering {self._key}.")

    def _tell(self, step: int, answers: list[Any]) -> None:
        self._told[step] = answers
        for kept in (self._told, self._offers):
            for old in [number for number in kept if number < step - 1]:
                del kept[old]
        self._condition.notify_all()


def added_up(answers: list[Any]) -> list[Any]:
    """Return answers in the order of ranks; sums, which are exact, as one."""
    if not isinstance(answers[0], Partial):
        return answers
    return [Partial(*(np.sum(parts, axis=0) for parts in zip(*answers, strict=True)))]
