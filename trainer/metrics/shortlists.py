"""Which items of a gallery may be among the first k of a query: products in bfloat16, and a bound on their error.

Exact distances of all pairs take four times the arithmetic and several passes over N x M numbers. Here every number is
looked at once: the gallery is cut into groups of 16, the k-th largest of the groups' maxima bounds the k-th largest of
all from below, and only groups that reach it, less twice the error, are opened. About 1.3 k items of a query are left,
whose exact distances then decide, so the screen changes no result. What is kept: half the bytes of the gallery, and
2^24 for the products of a chunk of queries with a block of the gallery, whatever M is.

Positive bfloat16 numbers are ordered like their bits as int16, which are compared and partitioned twice as fast.

Legend: n queries of a chunk, M items of the gallery, D embedding width, k neighbours, G items of a group, W groups,
C items that are left of all queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]
_GROUP = 16
_BLOCK = 2**15
_CELLS = 2**23
_ROWS = 2**10  # whose rounding is looked at together
_LEAST_ITEMS = 4096
_ROUND_UP = 1 + 2**-20  # of the bound's own arithmetic


class Shortlists:
    """The screen of one gallery (M, D). Not for vectors whose nearest items are at right angles to them, or beyond."""

    def __init__(self, gallery: torch.Tensor, norms: torch.Tensor) -> None:
        """Take `norms`, the squared norms (M,) of the gallery in float64."""
        self._num_items = len(gallery)
        centre = (norms.max() + norms.min()) / 2
        excess = (norms - centre) / 2
        # q.g - (|g|^2 - centre) / 2 orders like the distance. Unit vectors need no column for the second part.
        self._bias = bool(excess.abs().max() > 2**-12 * centre)
        self._largest = float(norms.max()) ** 0.5
        width = gallery.shape[1] + self._bias
        padded = -(-self._num_items // _GROUP) * _GROUP
        self._items = torch.zeros(padded, width, dtype=torch.bfloat16, device=gallery.device)
        self._rounded = self._excess = 0.0  # the largest error of an item's vector, and of its excess
        for start in range(0, self._num_items, _ROWS):
            part = slice(start, min(start + _ROWS, self._num_items))
            exact = gallery[part].double()
            self._items[part, : exact.shape[1]] = exact
            off = exact - self._items[part, : exact.shape[1]].double()
            self._rounded = max(self._rounded, float(off.norm(dim=1).max()))
            missed = excess[part]
            if self._bias:
                self._items[part, -1] = -excess[part].to(torch.bfloat16)
                missed = missed + self._items[part, -1].double()
            self._excess = max(self._excess, float(missed.abs().max()))
        self._buffer = torch.empty(0, dtype=torch.bfloat16, device=gallery.device)

    @staticmethod
    def pays(num_items: int, k: int) -> bool:
        """Tell whether so few of so many are asked for that looking at all of them exactly would take longer."""
        return num_items >= _LEAST_ITEMS and 8 * k <= num_items

    @staticmethod
    def num_queries(num_items: int, k: int) -> int:
        """Return how many queries may be asked at once."""
        return max(1, min(_CELLS // min(_block(k), num_items), 2**18 // max(k, 1)))

    def of(self, queries: torch.Tensor, k: int, removed: Pairs) -> Pairs | None:
        """Return (C,) queries, ascending, and (C,) items: the k nearest of (n, D) queries are among them.

        `removed`: (any,) queries and items that do not count. None: the screen cannot tell for one of the queries.
        """
        exact = queries.double()
        rough = exact.to(torch.bfloat16)
        slack = 2 * self._errors(exact, rough)  # of the k-th, and of what it is compared with
        if self._bias:
            rough = torch.cat([rough, rough.new_ones(len(rough), 1)], dim=1)
        found: list[tuple[npt.NDArray[Any], ...]] = []
        tops = np.full((len(rough), 0), -1, dtype=np.int16)
        low = np.ones(len(rough), dtype=np.int16)
        for start in range(0, len(self._items), _block(k)):
            codes = self._codes(rough, start, _block(k), removed)
            groups = codes.view(_GROUP // _thinner(k, len(codes)), -1, len(rough))
            best = groups.amax(dim=0).cpu().numpy()
            tops = np.concatenate([tops, best.T], axis=1)
            if tops.shape[1] > k:
                tops = np.ascontiguousarray(np.partition(tops, tops.shape[1] - k, axis=1)[:, -k:])
            if tops.shape[1] == k:
                low = _lowered(tops.min(axis=1), slack)
            found.append(_opened(groups, best, low, start))
        if tops.shape[1] < k or (low < 1).any() or (tops.min(axis=1) < 1).any():
            return None
        owners, items, values = (np.concatenate(each) for each in zip(*found, strict=True))
        kept = values >= low[owners]
        owners, items = owners[kept], items[kept]
        order = np.argsort(owners, kind="stable")
        return owners[order], items[order]

    def _errors(self, exact: torch.Tensor, rough: torch.Tensor) -> npt.NDArray[np.float64]:
        """Return (n,) how far a product can be from the exact one, before it is rounded: vectors, sums in float32."""
        wide = rough.double()
        norms = wide.norm(dim=1)
        size = norms * (self._largest + self._rounded) + (self._largest**2 if self._bias else 0.0)
        inputs = (exact - wide).norm(dim=1) * self._largest + norms * self._rounded + self._excess
        sums = size * 2**-22 * exact.shape[1]
        return ((inputs + sums) * _ROUND_UP).cpu().numpy()

    def _codes(self, rough: torch.Tensor, start: int, block: int, removed: Pairs) -> torch.Tensor:
        """Return the products (block, n) of a block of the gallery, as the bits of bfloat16 numbers, int16."""
        items = self._items[start : start + block]
        if self._buffer.numel() < len(items) * len(rough):
            self._buffer = self._buffer.new_empty(len(items) * len(rough))
        out = self._buffer[: len(items) * len(rough)].view(len(items), len(rough))
        with _sums_in_float32():
            codes = torch.mm(items, rough.T, out=out).view(torch.int16)
        owners, columns = removed
        here = (columns >= start) & (columns < start + len(items))
        places = (torch.from_numpy(each[here]).to(codes.device) for each in (columns - start, owners))
        codes[tuple(places)] = -1
        codes[max(self._num_items - start, 0) :] = -1
        return codes


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Keep a GPU from rounding the parts of a sum to bfloat16, which the bound on the error does not allow for."""
    switch = torch.backends.cuda.matmul
    before = switch.allow_bf16_reduced_precision_reduction
    switch.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        switch.allow_bf16_reduced_precision_reduction = before


def _block(k: int) -> int:
    """Return how many items of the gallery are looked at together: many more than k, and whole groups."""
    return max(_BLOCK, -(-8 * k // _GROUP) * _GROUP)


def _thinner(k: int, num_items: int) -> int:
    """Return by how much groups must be smaller than 16 for k of their maxima to say something."""
    thinner = 1
    while thinner < _GROUP and 4 * k * _GROUP > num_items * thinner:
        thinner *= 2
    return thinner


def _lowered(codes: npt.NDArray[np.int16], slack: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    """Return the codes (n,) of numbers that are smaller by the slack (n,), rounded down; 0 where that is not positive.

    Both products were rounded to 8 bits, hence another 2^-7 of the number: errors of what is larger do not matter.
    """
    values = (codes.astype(np.int32) << 16).view(np.float32).astype(np.float64) * (1 - 2**-7) - slack
    values = np.where(codes > 0, np.maximum(values, 0.0), 0.0) * (1 - 2**-20)
    return np.asarray(values.astype(np.float32).view(np.int32) >> 16, dtype=np.int16)


def _opened(
    groups: torch.Tensor, best: npt.NDArray[np.int16], low: npt.NDArray[np.int16], start: int
) -> tuple[Ints, Ints, npt.NDArray[np.int16]]:
    """Return queries, items and codes (C,) of what reaches `low` (n,), from groups (G, W, n) whose `best` is (W, n)."""
    size, width, num = groups.shape
    where, owners = np.nonzero(best >= np.maximum(low, 1))
    places = torch.from_numpy(where * num + owners).to(groups.device)
    codes = groups.reshape(size, width * num).index_select(1, places).cpu().numpy()
    ranks, pairs = np.nonzero(codes >= np.maximum(low, 1)[owners])
    return owners[pairs], start + ranks * width + where[pairs], codes[ranks, pairs]
