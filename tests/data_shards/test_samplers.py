"""Shares of fixed orders: nothing is lost or doubled for any number of ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards import order
from data_shards.errors import UserError
from data_shards.order import BatchRule, batches
from data_shards.samplers import batch_slice, blocks, labels_of, rows_of, shares, visits


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 300), st.integers(1, 70), st.integers(1, 9))
def test_blocks_and_shares_partition_the_rows(num_rows: int, block: int, world: int) -> None:
    cut = blocks(num_rows, block)
    parts = [shares(len(cut), rank, world) for rank in range(world)]
    rows = [row for part in parts for i in part for row in cut[i].tolist()]
    assert rows == list(range(num_rows))
    assert all(len(b) == block for b in cut[:-1])
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5))
def test_ranks_hold_runs_of_pieces_that_rebuild_the_batch(num_pieces: int, world: int, width: int) -> None:
    if world > num_pieces:
        with pytest.raises(UserError, match=f"too few for {world} ranks"):
            batch_slice(num_pieces * width, num_pieces, 0, world)
        return
    cuts = [batch_slice(num_pieces * width, num_pieces, rank, world) for rank in range(world)]
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(num_pieces * width))
    held = [(stop - start) / width for start, stop in cuts]
    assert all(number == int(number) >= 1 for number in held)
    assert max(held) - min(held) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
def test_slices_of_any_world_size_rebuild_the_global_batch(world: int) -> None:
    labels = np.arange(200) % 5
    for _, rows in batches(0, 0, None, labels, 1, BatchRule(24, 4)):
        cuts = [batch_slice(24, 6, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate([rows[start:stop] for start, stop in cuts]), rows)


@pytest.mark.parametrize("long", [0, 2**22])
def test_rows_and_labels_of_a_batch_are_the_same_in_short_and_long_orders(
    long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "LONG", long)
    labels = np.arange(200) % 5
    found = batches(0, 0, None, labels, 1, BatchRule(24, 4))
    for index, (_, rows) in enumerate(found):
        assert np.array_equal(rows_of(found, index, 6, 18), rows[6:18])
        assert np.array_equal(labels_of(found, index, labels), labels[rows])


def test_a_batch_that_does_not_divide_is_a_user_error() -> None:
    with pytest.raises(UserError, match="not divisible by 3"):
        batch_slice(32, 3, 0, 1)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), max_size=8))
def test_visits_count_earlier_appearances(epoch: list[list[int]]) -> None:
    found = visits([(0, np.array(rows, dtype=np.int64)) for rows in epoch])
    seen: Counter[int] = Counter()
    for rows, counted in zip(epoch, found, strict=True):
        for row, count in zip(rows, counted.tolist(), strict=True):
            assert count == seen[row]
            seen[row] += 1
