"""Shares of fixed orders: nothing is lost or doubled for any number of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import UserError
from data_shards.order import BatchRule, batches
from data_shards.samplers import batch_slices, blocks, shares, visits


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 300), st.integers(1, 70), st.integers(1, 9))
def test_blocks_and_shares_partition_the_rows(num_rows: int, block: int, world: int) -> None:
    cut = blocks(num_rows, block)
    parts = [shares(len(cut), rank, world) for rank in range(world)]
    rows = [row for part in parts for i in part for row in cut[i].tolist()]
    assert rows == list(range(num_rows))
    assert all(len(b) == block for b in cut[:-1])
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_slices_of_any_world_size_rebuild_the_global_batch(world: int) -> None:
    labels = np.arange(200) % 5
    for _, rows in batches(0, 0, None, labels, 1, BatchRule(16, 4)):
        parts = [rows[start:stop] for start, stop in batch_slices(16, world)]
        assert np.array_equal(np.concatenate(parts), rows)
        assert {len(p) for p in parts} == {16 // world}


def test_a_batch_that_does_not_divide_is_a_user_error() -> None:
    with pytest.raises(UserError, match="not divisible by 3"):
        batch_slices(32, 3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), max_size=8))
def test_visits_count_earlier_appearances(epoch: list[list[int]]) -> None:
    found = visits([(0, np.array(rows, dtype=np.int64)) for rows in epoch])
    seen: Counter[int] = Counter()
    for rows, counted in zip(epoch, found, strict=True):
        for row, count in zip(rows, counted.tolist(), strict=True):
            assert count == seen[row]
            seen[row] += 1
