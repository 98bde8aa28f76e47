"""Every single flipped bit changes the number; the majority is right."""

from __future__ import annotations

import pytest
import torch

from trainer.engines.replicas import ReplicasDiffer, bit_sum, check, odd_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_every_single_bit_counts(dtype: torch.dtype) -> None:
    tensors = [torch.arange(6).reshape(2, 3).to(dtype), torch.tensor(3.0), torch.zeros(2, 3, 2, 2)]
    before = int(bit_sum(tensors, CPU))
    bits = tensors[0].view(torch.uint8).view(-1)
    for place in range(len(bits)):
        for bit in range(8):
            bits[place] ^= 1 << bit
            assert int(bit_sum(tensors, CPU)) != before
            bits[place] ^= 1 << bit
    assert int(bit_sum(tensors, CPU)) == before


def test_layout_is_no_difference_and_tensors_are_not_exchanged() -> None:
    image = torch.randn(2, 3, 4, 5)
    assert bit_sum([image], CPU) == bit_sum([image.contiguous(memory_format=torch.channels_last)], CPU)
    a, b = torch.randn(3), torch.randn(3)
    assert bit_sum([a, b], CPU) != bit_sum([b, a], CPU)


@pytest.mark.parametrize(
    ("sums", "odd"), [([5, 5, 7], [2]), ([7, 5, 5, 5], [0]), ([5, 7], [0, 1]), ([5, 5, 7, 7], [0, 1, 2, 3])]
)
def test_the_majority_is_right_and_without_one_all_are_named(sums: list[int], odd: list[int]) -> None:
    assert odd_ranks(sums) == odd
    with pytest.raises(ReplicasDiffer, match="at step 9 rank") as caught:
        check(sums, 9)
    assert caught.value.exit_code == 70


def test_equal_sums_pass() -> None:
    check([3, 3, 3], 1)
