"""The order of an epoch of very many rows, computed where it is asked for: any place of any batch, at the same price.

A rank of a large run needs a few rows of each batch. Drawing the list of all, as `order` does for small splits, would
take every rank minutes and gigabytes per epoch. Here a row is a function of its place: a batch is mixed by a keyed
permutation; its classes are the next ones of a keyed permutation of the classes, a new one for every round; and
within a class the next rows of a keyed permutation of its rows, a new one for every lap. So neither the number of
ranks nor a restart can change a row, and a class is walked through before it repeats.

What differs from the order of small splits: classes come in rounds instead of being drawn for each batch; weighted
classes are drawn for each batch, and their rows anew instead of being walked through.

Legend: B rows per batch, G classes of a subspace, m classes in a batch, n places asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from data_shards import keyed
from data_shards.grouping import Pool

Ints = npt.NDArray[np.integer[Any]]
Rows = npt.NDArray[np.int64]
Batch = tuple[int | None, Rows]
_LAP_BITS = 32  # of the key of a class's lap
_AHEAD = 2**15  # rows that are made together


class LongOrder(Sequence[Batch]):
    """A sequence of (k, (B,) rows), like the list of `order.batches`; a slice of it is one, too, and costs nothing."""

    def __init__(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        schedule: Ints,
        pools: Sequence[Pool],
        weighted: bool,
        given: Ints | None = None,
    ) -> None:
        """Take the subspace of every step; `weighted`: classes are drawn for each batch, by their shares; `given`: the
        labels (S,), unless the classes of the pools are those."""
        self._seed, self._epoch, self._weighted = seed, epoch, weighted
        self._schedule, self._steps, self._numbers = schedule, range(len(schedule)), _numbers(schedule)
        self._pools = {pool.subspace: pool for pool in pools}
        # One permutation for the epoch, begun somewhere else in every batch: what it mixes is drawn anew each time.
        mixed = np.tile(keyed.generator(seed, "order/mix", epoch).permutation(batch_size), 2)
        self._slots = {pool.subspace: _slots(pool, mixed) for pool in pools}
        begins = keyed.fold(keyed.key(seed, "order/begin", epoch), np.arange(len(schedule)))
        self._begins = (begins % np.uint64(batch_size)).astype(np.int64)
        self._given = given
        self._places = np.arange(batch_size)
        self._made: tuple[Any, Any] = (None, None)

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: slice) -> LongOrder: ...

    def __getitem__(self, index: int | slice) -> Batch | LongOrder:
        if isinstance(index, slice):
            part = copy(self)
            part._steps = self._steps[index]
            return part
        step = self._steps[index]
        return int(self._schedule[step]), self._rows(range(step, step + 1), self._places)[0][0]

    def part(self, index: int, slices: Sequence[slice]) -> tuple[int, Rows, Rows]:
        """Return the subspace of a batch, the rows (n,) of some slices of it, and what tells their visits apart (n,).

        A row comes up once per lap, and several times in a batch only if its class is smaller than its quota. Rows of
        the steps that follow are made at once: a few rows alone would cost as much.
        """
        step, places = self._steps[index], np.concatenate([self._places[each] for each in slices])
        ahead = max(1, _AHEAD // max(1, len(places)))
        first = step - step % ahead
        wanted = (first, places.tobytes())
        if self._made[0] != wanted:
            steps = range(first, min(first + ahead, len(self._schedule)))
            self._made = wanted, self._rows(steps, places)
        rows, laps = self._made[1]
        return int(self._schedule[step]), rows[step - first], laps[step - first]

    def labels(self, index: int) -> Ints:
        """Return the labels (B,) of a batch; of batches by class no row is looked up."""
        if self._given is not None:
            return self._given[self[index][1]]
        step = self._steps[index]
        pool, begin = self._pools[int(self._schedule[step])], self._begins[step]
        slots = self._slots[pool.subspace][0][begin : begin + len(self._places)]
        return (pool.classes if pool.per_batch == len(pool.sizes) else pool.classes[self._chosen(pool, step)])[slots]

    def _rows(self, steps: range, places: Rows) -> tuple[list[Rows], list[Rows]]:
        """Return the rows (n,) at some places of each of some batches, and the laps of their classes."""
        by_subspace: dict[int, list[int]] = {}
        for step in steps:
            by_subspace.setdefault(int(self._schedule[step]), []).append(step)
        made: dict[int, tuple[Rows, Rows]] = {}
        for subspace, own in by_subspace.items():
            made |= zip(own, zip(*self._rows_of(self._pools[subspace], own, places), strict=True), strict=True)
        rows, laps = zip(*(made[step] for step in steps), strict=True)
        return list(rows), list(laps)

    def _rows_of(self, pool: Pool, steps: list[int], places: Rows) -> tuple[Rows, Rows]:
        """Return rows and laps (s, n) of s steps of one subspace."""
        found = [self._group(step, places) for step in steps]
        group, inner = (np.stack(each) for each in zip(*found, strict=True))
        number = self._numbers[steps][:, None]
        quotas, sizes = pool.quotas[group], pool.sizes[group]
        laps = -(-quotas // sizes)
        if self._weighted and pool.per_batch < len(pool.sizes):
            lap, place = number * laps + inner // sizes, inner % sizes
        else:
            turn, per_lap = number // (len(pool.sizes) // pool.per_batch), np.maximum(sizes // quotas, 1)
            is_long = sizes >= quotas
            lap = np.where(is_long, turn // per_lap, turn * laps + inner // sizes)
            place = np.where(is_long, turn % per_lap * quotas + inner, inner % sizes)
        base = keyed.key(self._seed, "order/rows", self._epoch, pool.subspace)
        keys = keyed.fold(base, ((group << _LAP_BITS) + lap).reshape(-1))
        places = keyed.permuted(keys, sizes.reshape(-1), place.reshape(-1)).reshape(group.shape)
        return pool.members[pool.starts[group] + places].astype(np.int64), lap

    def _group(self, step: int, places: Rows) -> tuple[Rows, Rows]:
        """Return for places (n,) of a batch the class, by its number in the pool, and which of its rows there."""
        pool = self._pools[int(self._schedule[step])]
        slots, inner = (each[self._begins[step] + places] for each in self._slots[pool.subspace])
        return (slots if pool.per_batch == len(pool.sizes) else self._chosen(pool, step)[slots]), inner

    def _chosen(self, pool: Pool, step: int) -> Rows:
        """Return the classes (m,) of a batch, numbers within the pool."""
        many, few, number = len(pool.sizes), pool.per_batch, int(self._numbers[step])
        if self._weighted:
            rng = keyed.generator(self._seed, "order/classes", self._epoch, pool.subspace, number)
            return rng.choice(many, few, replace=False, p=pool.shares)
        turn, slot = divmod(number, many // few)
        return _round(self._seed, self._epoch, pool.subspace, turn, many)[slot * few : (slot + 1) * few]


def _slots(pool: Pool, mixed: Rows) -> tuple[Rows, Rows]:
    """Return which of a batch's classes the places (2 B,) of mixed batches are of, and which of its rows they are."""
    if pool.per_batch < len(pool.sizes):
        return mixed // pool.quotas[0], mixed % pool.quotas[0]
    edges = pool.quotas.cumsum()
    slots = np.searchsorted(edges, mixed, side="right")
    return slots, mixed - (edges - pool.quotas)[slots]


@lru_cache(maxsize=64)
def _round(seed: int, epoch: int, subspace: int, turn: int, many: int) -> Rows:
    """Return the order of the classes in one round."""
    return keyed.generator(seed, "order/round", epoch, subspace, turn).permutation(many)


def _numbers(schedule: Ints) -> Rows:
    """Return for every step how many of its subspace came before."""
    order = np.argsort(schedule, kind="stable")
    first = np.searchsorted(schedule[order], schedule[order], side="left")
    out = np.empty(len(schedule), dtype=np.int64)
    out[order] = np.arange(len(schedule)) - first
    return out
