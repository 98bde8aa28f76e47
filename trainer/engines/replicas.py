"""Whether the ranks still hold the same weights: one number per rank, compared now and then.

A bit that flips in one rank's memory is not an error anywhere: the rank trains on, its gradients are averaged in, and
no loss looks odd. The number is a sum of bit patterns as integers, exact in any order, so one flipped bit always shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicasDiffer(RuntimeError):
    """Ranks that should hold equal tensors do not; names step and ranks. Exit code 70: a restart mends it."""

    exit_code = 70


def bit_sum(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return () int64: the bit patterns of all values as integers, added up with the tensor's number as a weight."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for weight, tensor in enumerate(tensors, 1):
        bits = tensor.detach().view(BITS[tensor.element_size()])
        total += weight * bits.sum(dtype=torch.int64).to(device)
    return total


def odd_ranks(sums: list[int]) -> list[int]:
    """Return the ranks that are not with the majority; all ranks where there is none."""
    (common, votes), *_ = Counter(sums).most_common(1)
    if 2 * votes <= len(sums):
        return list(range(len(sums)))
    return [rank for rank, value in enumerate(sums) if value != common]


def check(sums: list[int], step: int) -> None:
    """Raise ReplicasDiffer unless the ranks' sums are equal."""
    if len(set(sums)) == 1:
        return
    odd = odd_ranks(sums)
    what = "weights or moments unlike the other ranks'" if len(odd) < len(sums) else "unlike weights or moments"
    raise ReplicasDiffer(
        f"at step {step} {ranks_in_words(odd)} held {what}: memory or network damaged them;"
        " the run goes on from the newest checkpoint, which is from before it"
    )


def ranks_in_words(ranks: list[int]) -> str:
    """Return "rank 1", or "ranks 0, 2"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
