"""What follows the matrix product of a k-means, compiled by numba: one pass over scores that are still in cache.

Each of these replaces a dozen numpy or torch operations on short vectors, which take longer than the product itself
when there are few centroids. They are optional: `cluster.torch_index`, `cluster.index` and `cluster.bounds` do the same
without numba, with the same results. Compiled code is cached on disk; the first use on a machine takes a few seconds.

Legend: n rows of a block, m rows asked about, F feature width, K centroids, p candidate pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_FAR = np.float32(3e38)


@njit(cache=True, nogil=True, error_model="numpy")
def pick(
    scores: Any, offsets: Any, norms: Any, terms: Any, labels: Any, gaps: Any, at: Any, columns: Any
) -> int:  # pragma: no cover
    """Fill labels and gaps (m,) of (m, K) products; return how many undecided pairs were written to at, columns.

    `terms` are the parts of the tolerance: of the squared norm, of the norm, of the score, and the constant.
    """
    square, linear, last, constant = terms
    num = 0
    for i in range(len(scores)):
        best, second, label = _FAR, _FAR, 0
        for k in range(len(offsets)):
            score = scores[i, k] + offsets[k]
            # Without branches: which centroid is best cannot be predicted.
            second = min(second, max(best, score))
            label = k if score < best else label
            best = min(best, score)
        tolerance = norms[i] * (norms[i] * square + linear) + abs(best) * 2.0 * last + constant
        gap = (second - best) * (1.0 - 2.0 * last) - tolerance
        labels[i], gaps[i] = label, gap * (1.0 - 1e-6) if gap > 0.0 else gap
        if gap <= 0.0:
            limit = best + tolerance * (1.0 + 4.0 * last)
            for k in range(len(offsets)):
                if scores[i, k] + offsets[k] <= limit:
                    at[num], columns[num] = i, k
                    num += 1
    return num


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def squared_distance(row: Any, centroid: Any) -> Any:  # pragma: no cover
    """Return the float32 squared distance of two (F,) vectors."""
    total = np.float32(0.0)
    for d in range(len(row)):
        difference = row[d] - centroid[d]
        total += difference * difference
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def near_pairs(features: Any, centroids: Any, at: Any, columns: Any, slack: Any, keep: Any) -> None:  # pragma: no cover
    """Mark (p,) those pairs, in order of rows, whose float32 distance is within `slack` of the row's smallest."""
    squares = np.empty(len(at), dtype=np.float32)
    first = 0
    for p in range(len(at)):
        squares[p] = squared_distance(features[at[p]], centroids[columns[p]])
        if p + 1 == len(at) or at[p + 1] != at[p]:
            limit = squares[first : p + 1].min() * (np.float32(1.0) + slack) + slack * np.float32(1e-30)
            for j in range(first, p + 1):
                keep[j] = squares[j] <= limit
            first = p + 1


@njit(cache=True, nogil=True, error_model="numpy")
def add_rows(sums: Any, features: Any, rows: Any, old: Any, new: Any, factor: float) -> None:  # pragma: no cover
    """Add rows, as whole numbers of 1 / factor, to the sums (K, F) of their new labels; take them from the old ones.

    Without old labels that array is empty.
    """
    for i in range(len(rows)):
        row, target = features[rows[i]], sums[new[i]]
        if len(old):
            source = sums[old[i]]
            for d in range(len(row)):
                whole = np.int64(np.rint(row[d] * factor))
                target[d] += whole
                source[d] -= whole
        else:
            for d in range(len(row)):
                target[d] += np.int64(np.rint(row[d] * factor))


@njit(cache=True, nogil=True, error_model="numpy")
def due(room: Any, norms: Any, labels: Any, slope: Any, shift: Any, rows: Any) -> int:  # pragma: no cover
    """Write to `rows` those whose room (n,) is used up; return their number."""
    num = 0
    for i in range(len(room)):
        rows[num] = i
        num += 1 if room[i] <= norms[i] * slope[labels[i]] + shift[labels[i]] else 0
    return num
