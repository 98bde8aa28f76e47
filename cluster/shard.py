"""The arithmetic of one shard of a k-means: rows stay here, centroids come in, exact partial sums go out.

Every method is a pure function of (rows put here, arguments) with caches behind it, so a call may be repeated, and a
shard that was killed is replaced by putting its rows again and repeating the call. Nothing here knows of Ray.

Sums are int64 fixed point (`cluster.sums`): integer addition has no order, hence shards, their number and their order
cannot change one bit of a centroid.

Legend: n rows held here, F feature width, K centroids, j centroids chosen so far, m candidates asked for.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.bounds import Bounds, Drift
from cluster.errors import StaleMessage
from cluster.index import (
    BackendName,
    Features,
    Labels,
    NearestCentroid,
    checked,
    exact_distances,
    row_norm_bound,
)
from cluster.screen import Ids, Loaded, pieces, shifted_scores
from cluster.sums import CHUNK, Scale, Sums
from data_shards import keyed
from data_shards.errors import UserError


class Summary(NamedTuple):
    """What a shard holds: rows, feature width (0 when empty), largest magnitude, bound of the row norms."""

    num_rows: int
    num_features: int
    max_abs: float
    max_norm: float


class Candidate(NamedTuple):
    """One row of a shard offered to the others: smallest `value` wins, then the smallest `row_id`."""

    value: float
    row_id: int
    label: int
    vector: Features


class Partial(NamedTuple):
    """Exact sums (K, F) and counts (K,) of a shard."""

    sums: Sums
    counts: Sums


class _Block:
    """Rows put together, where the backend wants them, with their latest labels and how long these are safe."""

    def __init__(self, row_ids: Ids, features: Features, loaded: Loaded, max_abs: float) -> None:
        self.row_ids, self.features, self.loaded = row_ids, features, loaded
        self.max_abs, self.max_norm = max_abs, row_norm_bound(features)
        self.labels: Labels | None = None
        self.bounds: Bounds | None = None
        self.nearest_chosen = np.full(len(row_ids), np.inf, dtype=np.float32)  # squared distance while seeding


class KMeansShard:
    """Rows of one version and the four questions of Lloyd's algorithm about them."""

    def __init__(self, backend: BackendName = "auto", num_threads: int = 1, prune: bool = True) -> None:
        self._index, self._prune = NearestCentroid(backend, num_threads), prune
        self._clear(-1)

    def _clear(self, version: int) -> None:
        self.version = version
        self._blocks: list[_Block] = []
        self._chosen: Features | None = None
        self._centroids: Features | None = None
        self._partial: Partial | None = None
        self._scale: Scale | None = None

    def put(self, version: int, row_ids: npt.ArrayLike, features: npt.NDArray[Any]) -> None:
        """Add (n,) ids and (n, F) features; the first put of a newer version drops the older one.

        Raises UserError for non-finite or huge values and another width, StaleMessage for an older version.
        """
        if version < self.version:
            raise StaleMessage(f"Features of version {version} arrived after version {self.version}; they are refused.")
        if version > self.version:
            self._clear(version)
        ids = np.ascontiguousarray(row_ids, dtype=np.int64)
        block, max_abs = checked(features, ids)
        if len(ids) != len(block):
            raise UserError(f"{len(ids)} row ids came with {len(block)} rows of features.")
        if self._blocks and self._blocks[0].features.shape[1] != block.shape[1]:
            width = self._blocks[0].features.shape[1]
            raise UserError(f"Features are {block.shape[1]} wide, but earlier rows of this version are {width} wide.")
        if len(ids):
            self._blocks.append(_Block(ids, block, self._index.load(block), max_abs))
            self._centroids = self._chosen = None

    def reset(self, version: int) -> None:
        """Forget everything and start `version` afresh, whatever was held: a client that retries begins with this."""
        self._clear(version)

    def drop(self) -> None:
        """Let go of all rows; the version stays, so late messages are still refused."""
        self._clear(self.version)

    def summary(self, version: int) -> Summary:
        """Return what is held of a version (nothing, when no row of it was put here)."""
        if version > self.version:
            self._clear(version)
        self._check(version)
        if not self._blocks:
            return Summary(0, 0, 0.0, 0.0)
        rows = sum(len(block.row_ids) for block in self._blocks)
        max_abs, max_norm = (max(getattr(b, name) for b in self._blocks) for name in ("max_abs", "max_norm"))
        return Summary(rows, self._blocks[0].features.shape[1], max_abs, max_norm)

    def _check(self, version: int) -> None:
        if version != self.version:
            raise StaleMessage(f"Version {version} was asked for, but this shard holds version {self.version}.")

    # ---- seeding -------------------------------------------------------------------------------------------------

    def seed(self, version: int, key: int, chosen: Features) -> Candidate | None:
        """Return the row that wins the exponential race for the next initial centroid, None without rows.

        Row i runs with rate d_i^2, its squared distance to the nearest of the (j, F) chosen ones, and arrives at
        e_i / d_i^2 with a keyed exponential e_i; the first to arrive is drawn with probability d_i^2 / sum
        (Efraimidis and Spirakis 2006, https://doi.org/10.1016/j.ipl.2005.11.003; k-means++: Arthur and Vassilvitskii
        2007). Times depend on the row alone, so the winner is the same for any sharding.
        """
        self._check(version)
        self._measure(chosen)
        best: Candidate | None = None
        for block in self._blocks:
            draws = keyed.uniform(keyed.fold(key, block.row_ids), 1)[:, 0]
            with np.errstate(divide="ignore"):
                times = -np.log1p(-draws)
                if len(chosen):
                    times = np.where(block.nearest_chosen > 0, times / block.nearest_chosen, np.inf)
            best = _smaller(best, block, times)
        return best

    def _measure(self, chosen: Features) -> None:
        """Bring every row's distance to the nearest chosen centroid up to date."""
        known = 0 if self._chosen is None else len(self._chosen)
        if self._chosen is None or not np.array_equal(self._chosen, chosen[:known]):
            known = 0
            for block in self._blocks:
                block.nearest_chosen.fill(np.inf)
        for block in self._blocks:
            for part in pieces(*block.features.shape):
                for centre in chosen[known:]:
                    # Not a matrix product: einsum sums every row on its own, in one order, whatever the block.
                    squares = _squares(block.features[part], centre)
                    np.minimum(block.nearest_chosen[part], squares, out=block.nearest_chosen[part])
        self._chosen = chosen.copy()

    # ---- Lloyd ---------------------------------------------------------------------------------------------------

    def assign(self, version: int, centroids: Features, scale: Scale, max_norm: float) -> Partial:
        """Label every row with the nearest of (K, F) centroids; return exact sums and counts per centroid.

        Only rows whose label may have changed since the last call are looked at, and only those that did change are
        added and taken away: with integers that is the same number, and late iterations touch few rows.
        """
        self._check(version)
        if self._centroids is not None and self._scale == scale and np.array_equal(self._centroids, centroids):
            assert self._partial is not None
            return self._partial
        before, drift = self._partial, None
        if before is None or self._centroids is None or self._scale != scale or before.sums.shape != centroids.shape:
            before = Partial(np.zeros(centroids.shape, dtype=np.int64), np.zeros(len(centroids), dtype=np.int64))
            for block in self._blocks:
                block.labels = block.bounds = None
        else:
            drift = Drift.between(self._centroids, centroids)
        partial = Partial(before.sums.copy(), before.counts.copy())
        self._centroids = None  # whoever is interrupted half way starts afresh
        self._index.prepare(centroids, max_norm)
        for block in self._blocks:
            self._relabel(block, drift, partial, scale)
        self._partial, self._centroids, self._scale = partial, centroids.copy(), scale
        return partial

    def _relabel(self, block: _Block, drift: Drift | None, partial: Partial, scale: Scale) -> None:
        """Bring the labels of a block up to date, and `partial` with them."""
        num_centroids = len(partial.counts)
        due = None
        if block.bounds is None:
            block.bounds = Bounds(block.loaded.norms, block.loaded.reference, num_centroids, self._index.kernels)
        elif drift is not None and block.labels is not None and self._prune:
            block.bounds.move(drift)
            due = block.bounds.due(block.labels)
            due = due if 2 * len(due) < len(block.labels) else None  # reading on is twice as fast as picking
        old = block.labels
        labels = np.empty(len(block.row_ids), dtype=np.int32) if old is None else old
        changes: list[tuple[Ids, Labels, Labels]] = []
        for rows, found in self._index.look(block.features, block.loaded, due):
            if old is not None:
                changed = np.flatnonzero(found.labels != labels[rows])
                at = changed + rows.start if isinstance(rows, slice) else rows[changed]
                changes.append((at, labels[at], found.labels[changed]))
            labels[rows] = found.labels
            if found.gaps is not None and self._prune:
                block.bounds.store(rows, found.labels, found.gaps)
        block.labels = labels
        self._add(block, None if old is None else changes, partial, scale)

    def _add(
        self, block: _Block, changes: list[tuple[Ids, Labels, Labels]] | None, partial: Partial, scale: Scale
    ) -> None:
        """Add all rows of a block (None) or move those that changed."""
        assert block.labels is not None
        num = len(partial.counts)
        if changes is None:
            rows = np.arange(len(block.labels))
            self._index.add_rows(partial.sums, block.loaded, rows, None, block.labels, scale.shift)
            partial.counts[:] += np.bincount(block.labels, minlength=num)
        elif changes:
            rows, old, new = (np.concatenate(parts) for parts in zip(*changes, strict=True))
            self._index.add_rows(partial.sums, block.loaded, rows, old, new, scale.shift)
            partial.counts[:] += np.bincount(new, minlength=num) - np.bincount(old, minlength=num)

    def farthest(self, version: int, centroids: Features, scale: Scale, max_norm: float, num: int) -> list[Candidate]:
        """Return up to `num` rows farthest from their centroid (value = -squared distance), farthest first."""
        self.assign(version, centroids, scale, max_norm)
        found: list[Candidate] = []
        for block in self._blocks:
            assert block.labels is not None
            distances = np.concatenate(
                [exact_distances(block.features[p], centroids[block.labels[p]]) for p in pieces(*block.features.shape)]
            )
            order = np.lexsort((block.row_ids, -distances))[:num]
            found += [
                Candidate(-float(distances[i]), int(block.row_ids[i]), int(block.labels[i]), block.features[i].copy())
                for i in order
            ]
        return sorted(found, key=lambda c: (c.value, c.row_id))[:num]

    # ---- results -------------------------------------------------------------------------------------------------

    def labels(self, version: int, centroids: Features, scale: Scale, max_norm: float) -> tuple[Ids, Labels]:
        """Return (n,) row ids and (n,) int32 labels for the (K, F) centroids."""
        self.assign(version, centroids, scale, max_norm)
        ids = [block.row_ids for block in self._blocks]
        labels = [block.labels for block in self._blocks if block.labels is not None]
        if not ids:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        return np.concatenate(ids), np.concatenate(labels)

    def inertia(self, version: int, centroids: Features, scale: Scale, max_norm: float, shift: int) -> int:
        """Return the sum of squared distances to the centroids as an integer, to be multiplied by 2**-shift.

        Differences of float32 lose nothing that matters: a squared distance is right to 1e-5 at worst, the sum to 1e-7.
        """
        self.assign(version, centroids, scale, max_norm)
        exponent = math.frexp(max_norm)[1]
        unit = np.float32(2.0**-exponent)  # squares of rows of any length then lie within float32
        total = 0
        for block in self._blocks:
            assert block.labels is not None
            for part in pieces(*block.features.shape):
                squares = _squares(block.features[part], centroids[block.labels[part]], unit).astype(np.float64)
                total += int(np.rint(np.ldexp(squares, shift + 2 * exponent)).astype(np.int64).sum())
        return total

    def reserves(
        self, version: int, centroids: Features, scale: Scale, max_norm: float, num: int
    ) -> list[tuple[npt.NDArray[np.float64], Ids]]:
        """Return, per centroid, the `num` rows of other clusters that would lose least by moving to it.

        Each entry is (extra squared distance (m,), row ids (m,)), cheapest first, ties by row id.
        """
        self.assign(version, centroids, scale, max_norm)
        weights, offsets, tolerance = shifted_scores(centroids, max_norm)
        empty = (np.empty(0), np.empty(0, dtype=np.int64))
        parts: list[list[tuple[npt.NDArray[np.float64], Ids]]] = [[empty] for _ in centroids]
        for block in self._blocks:
            assert block.labels is not None
            own = np.einsum("ij,ij->i", block.features, weights.T[block.labels]) + offsets[block.labels]
            for k, part in enumerate(parts):
                # The screen may misjudge an extra cost by twice the tolerance; what it leaves is measured exactly.
                extra = block.features @ weights[:, k] + offsets[k] - own
                extra[block.labels == k] = np.inf
                limit = np.partition(extra, num - 1)[num - 1] if num < len(extra) else np.inf
                rows = np.flatnonzero((extra <= limit + 2 * tolerance) & (block.labels != k))
                part.append((_extra_costs(block, rows, centroids, k), block.row_ids[rows]))
        return [_cheapest(part, num) for part in parts]


def _squares(rows: Features, centroids: Features, unit: np.float32 | None = None) -> Features:
    """Return (m,) squared float32 distances in units of 1 / `unit`; each depends on its own row alone."""
    difference = rows - centroids
    if unit is not None:
        difference *= unit
    squares: Features = np.einsum("ij,ij->i", difference, difference)
    return squares


def _extra_costs(block: _Block, rows: Ids, centroids: Features, k: int) -> npt.NDArray[np.float64]:
    assert block.labels is not None
    out = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        vectors = block.features[part]
        there = exact_distances(vectors, np.broadcast_to(centroids[k], vectors.shape))
        out[start : start + CHUNK] = there - exact_distances(vectors, centroids[block.labels[part]])
    return out


def _cheapest(parts: list[tuple[npt.NDArray[np.float64], Ids]], num: int) -> tuple[npt.NDArray[np.float64], Ids]:
    costs = np.concatenate([cost for cost, _ in parts])
    ids = np.concatenate([row_ids for _, row_ids in parts])
    order = np.lexsort((ids, costs))[:num]
    return costs[order], ids[order]


def _smaller(best: Candidate | None, block: _Block, values: npt.NDArray[np.float64]) -> Candidate:
    tied = np.flatnonzero(values == values.min())
    row = int(tied[np.argmin(block.row_ids[tied])])
    label = -1 if block.labels is None else int(block.labels[row])
    mine = Candidate(float(values[row]), int(block.row_ids[row]), label, block.features[row].copy())
    return mine if best is None or (mine.value, mine.row_id) < (best.value, best.row_id) else best
