"""The cut of an embedding: covering, unit blocks, equal weight of subspaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.subspaces.partition import SubspacePartition


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_slices_cover_every_dimension_once(widths: list[int]) -> None:
    partition = SubspacePartition(tuple(widths))
    covered = [d for part in partition.slices for d in range(part.start, part.stop)]
    assert covered == list(range(partition.num_dims))
    assert [part.stop - part.start for part in partition.slices] == widths


@pytest.mark.parametrize("num_subspaces", [1, 3, 6, 10, 128])
def test_equal_cut_trains_every_column_for_any_number(num_subspaces: int) -> None:
    widths = SubspacePartition.equal(128, num_subspaces).widths
    assert sum(widths) == 128
    assert max(widths) - min(widths) <= 1
    with pytest.raises(ValueError, match="cannot cut"):
        SubspacePartition.equal(128, 129)


def test_inner_product_of_whole_vectors_is_the_mean_cosine_of_their_blocks() -> None:
    partition = SubspacePartition((2, 5, 9))
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = x.numpy()
    cosines = [a[s] @ b[s] / np.linalg.norm(a[s]) / np.linalg.norm(b[s]) for s in partition.slices]
    whole = partition.normalize(x)
    assert (whole[0] @ whole[1]).item() == pytest.approx(np.mean(cosines))
    assert torch.linalg.vector_norm(whole, dim=1).tolist() == pytest.approx([1, 1])
    for k, part in enumerate(partition.slices):
        torch.testing.assert_close(partition.block(x, k), whole[:, part] * np.sqrt(3))
    assert torch.equal(torch.cat(partition.split(x), dim=1), x)


def test_half_precision_is_normalised_in_float32() -> None:
    x = torch.randn(4, 6).bfloat16()
    assert SubspacePartition((2, 4)).normalize(x).dtype == torch.float32
    assert SubspacePartition((2, 4)).block(x, 1).dtype == torch.float32


def test_every_change_counts_a_version_and_keeps_the_width() -> None:
    partition = SubspacePartition((16,))
    grown = partition.grow((5, 11))
    assert (grown.version, grown.merged().version, grown.merged().widths) == (1, 2, (16,))
    assert partition == SubspacePartition((16,))
    with pytest.raises(ValueError, match="sum"):
        partition.grow((5, 5))
    with pytest.raises(ValueError, match="at least one"):
        SubspacePartition((4, 0))
