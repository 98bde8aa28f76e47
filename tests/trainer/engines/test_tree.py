"""The tree is the one that adds neighbours level by level, whoever holds which run of pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data_shards.samplers import shares
from trainer.engines import tree


def by_levels(items: list[Tensor]) -> Tensor:
    while len(items) > 1:
        pairs = [items[i] + items[i + 1] for i in range(0, len(items) - 1, 2)]
        items = pairs + ([items[-1]] if len(items) % 2 else [])
    return items[0]


@pytest.mark.parametrize("num_pieces", [1, 2, 3, 4, 5, 7, 8, 12, 13])
def test_any_ranks_add_up_to_the_bytes_of_the_levels(num_pieces: int) -> None:
    rows = list(torch.randn(num_pieces, 50, generator=torch.Generator().manual_seed(num_pieces)))
    expected = by_levels(rows)
    for world in range(1, num_pieces + 1):
        sums: dict[tree.Node, Tensor] = {}
        for rank in range(world):
            own = shares(num_pieces, rank, world)
            for node in tree.subtrees(0, num_pieces, own):
                assert own.start <= node[0] < node[1] <= own.stop
                sums[node] = tree.add_up(*node, lambda leaf: rows[leaf[0]] if leaf[1] - leaf[0] == 1 else None)
        assert torch.equal(tree.add_up(0, num_pieces, sums.get), expected)


def test_few_sums_travel() -> None:
    assert tree.subtrees(0, 8, range(8)) == [(0, 8)]
    assert tree.subtrees(0, 8, range(4, 8)) == [(4, 8)]
    assert tree.subtrees(0, 4, range(2, 4)) == [(2, 4)]
    assert tree.subtrees(0, 6, range(3)) == [(0, 2), (2, 3)]
