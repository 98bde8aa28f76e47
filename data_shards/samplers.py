"""Shares of fixed orders: evaluation blocks, rows of the global batch, and how often a row came up before.

Blocks are cut from the start of the split, never from a rank's share, because a forward pass may differ in the last
bit with the size of its batch: with fixed blocks the embeddings are the same for any number of ranks.

Legend: S samples, B rows per batch, W ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from data_shards.errors import UserError
from data_shards.long_order import LongOrder
from data_shards.order import GlobalBatch

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Blocks(Sequence[Rows]):
    """The rows 0..S-1 in consecutive blocks of `block` rows, made when they are asked for; the last may be shorter."""

    num_rows: int
    block: int

    def __len__(self) -> int:
        return -(-self.num_rows // self.block)

    @overload
    def __getitem__(self, index: int) -> Rows: ...

    @overload
    def __getitem__(self, index: slice) -> list[Rows]: ...

    def __getitem__(self, index: int | slice) -> Rows | list[Rows]:
        starts = range(0, self.num_rows, self.block)[index]
        return self._from(starts) if isinstance(starts, int) else [self._from(start) for start in starts]

    def _from(self, start: int) -> Rows:
        return np.arange(start, min(start + self.block, self.num_rows), dtype=np.int64)


def blocks(num_rows: int, block: int) -> Blocks:
    """Return the rows 0..S-1 in consecutive blocks of `block` rows; the last one may be shorter."""
    return Blocks(num_rows, block)


def shares(num_blocks: int, rank: int, world: int) -> range:
    """Return the contiguous share of `rank` out of `world`; shares differ by at most one block."""
    return range(num_blocks * rank // world, num_blocks * (rank + 1) // world)


def batch_slice(batch_size: int, num_pieces: int, rank: int, world: int) -> tuple[int, int]:
    """Return (start, stop) of the rows of a batch that `rank` holds: its share of `num_pieces` equal pieces.

    Raises:
        UserError: the batch cannot be cut so, or a rank would hold nothing.
    """
    if batch_size % num_pieces:
        raise UserError(f"batch size {batch_size} is not divisible by {num_pieces} pieces: change one of them")
    if num_pieces < world:
        raise UserError(f"{num_pieces} pieces of a batch are too few for {world} ranks: each needs one at least")
    width, own = batch_size // num_pieces, shares(num_pieces, rank, world)
    return own.start * width, own.stop * width


def visits(batches: Sequence[GlobalBatch]) -> list[Rows]:
    """Return for every batch (B,) how often each of its rows came up before in the epoch.

    Rows of small classes come up many times in an epoch, some twice in a batch; counted over the global order, the
    number tells these visits apart (so that each is augmented anew) and depends on no rank.
    """
    if not batches:
        return []
    rows = np.concatenate([r for _, r in batches])
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    run_starts = np.repeat(first, np.diff(np.append(first, len(rows))))
    counts = np.empty(len(rows), dtype=np.int64)
    counts[order] = np.arange(len(rows)) - run_starts
    return np.split(counts, np.cumsum([len(r) for _, r in batches])[:-1])


class Parts(Protocol):
    """An order of which a rank asks for its part."""

    def __len__(self) -> int: ...

    def part(self, index: int, slices: Sequence[slice]) -> tuple[int | None, Rows, Rows]:
        """Return the subspace of a batch, the rows (n,) of some slices of it, and how often each came up before."""
        ...


class Listed:
    """A list of global batches, as `Parts`."""

    def __init__(self, batches: Sequence[GlobalBatch]) -> None:
        self._batches, self._visits = batches, visits(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def part(self, index: int, slices: Sequence[slice]) -> tuple[int | None, Rows, Rows]:
        subspace, rows = self._batches[index]
        earlier = self._visits[index]
        return subspace, np.concatenate([rows[s] for s in slices]), np.concatenate([earlier[s] for s in slices])


def parts(batches: Sequence[GlobalBatch]) -> Parts:
    """Return an order in the form that a rank asks for its part in; a long one computes nothing else."""
    return batches if isinstance(batches, LongOrder) else Listed(batches)


def rows_of(batches: Sequence[GlobalBatch], index: int, start: int, stop: int) -> Rows:
    """Return the rows start .. stop - 1 of a global batch; of a long order no other is computed."""
    if isinstance(batches, LongOrder):
        return batches.part(index, [slice(start, stop)])[1]
    return batches[index][1][start:stop]


def labels_of(batches: Sequence[GlobalBatch], index: int, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the labels (B,) of a global batch of rows with labels (S,); of a long order no row is computed."""
    return batches.labels(index) if isinstance(batches, LongOrder) else labels[batches[index][1]]
