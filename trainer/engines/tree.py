"""Sums of logical pieces by a fixed binary tree, so that the bytes depend on the pieces and not on who held them.

Pieces 0..L-1 are added pairwise, the sums of neighbours again, and so on; an odd one waits for the next level. Seen
from the top: the left half of L pieces is the greatest power of two below L. A rank that holds a contiguous run of
pieces can add up every subtree that lies within its run, and only those sums travel.

Legend: L pieces of all ranks, [start, stop) a run of pieces.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Node = tuple[int, int]


def middle(start: int, stop: int) -> int:
    """Return where the tree over pieces [start, stop), at least two, parts into its halves."""
    return start + (1 << (stop - start - 1).bit_length() - 1)


def subtrees(start: int, stop: int, own: range) -> list[Node]:
    """Return, left to right, the greatest subtrees of the tree over [start, stop) that lie within the run `own`."""
    if stop <= own.start or own.stop <= start:
        return []
    if own.start <= start and stop <= own.stop:
        return [(start, stop)]
    half = middle(start, stop)
    return subtrees(start, half, own) + subtrees(half, stop, own)


def add_up(start: int, stop: int, given: Callable[[Node], Tensor | None]) -> Tensor:
    """Return the sum over pieces [start, stop); `given` returns the sums that are there already, leaves at least."""
    known = given((start, stop))
    if known is not None:
        return known
    half = middle(start, stop)
    return add_up(start, half, given) + add_up(half, stop, given)
