"""The arithmetic of one shard of a k-means: rows stay here, centroids come in, exact partial sums go out.

Every method is a pure function of (rows put here, arguments) with caches behind it, so a call may be repeated, and a
shard that was killed is replaced by putting its rows again and repeating the call. Nothing here knows of Ray.

Sums are int64 fixed point (`cluster.sums`): integer addition has no order, hence shards, their number and their order
cannot change one bit of a centroid.

Legend: n rows held here, F feature width, K centroids, j centroids chosen so far, m candidates asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cluster.backend import Block, exact_distances
from cluster.bounds import Bounds, Drift
from cluster.errors import StaleMessage
from cluster.index import BackendName, NearestCentroid
from cluster.screen import Features, Ids, Labels, shifted_scores
from cluster.sums import CHUNK, Partial, Scale
from data_shards import keyed
from data_shards.errors import UserError

_TOGETHER = 16  # centroids for which reserves are screened in one pass over the rows


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


class _Rows:
    """A block put together, its row ids, and squared distances to the nearest chosen one while seeding."""

    def __init__(self, row_ids: Ids, block: Block) -> None:
        self.row_ids, self.block = row_ids, block
        self.nearest_chosen = np.full(len(row_ids), np.inf, dtype=np.float32)

    @property
    def features(self) -> Features:
        """(n, F)."""
        return self.block.features

    @property
    def labels(self) -> Labels:
        """(n,), of the latest centroids."""
        assert self.block.labels is not None
        return self.block.labels


class KMeansShard:
    """Rows of one version and the four questions of Lloyd's algorithm about them."""

    def __init__(self, backend: BackendName = "auto", num_threads: int = 1, prune: bool = True) -> None:
        self._index, self._prune = NearestCentroid(backend, num_threads), prune
        self._clear(-1)

    def _clear(self, version: int) -> None:
        self.version = version
        self._blocks: list[_Rows] = []
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
        if features.ndim == 2 and len(ids) != len(features):
            raise UserError(f"{len(ids)} row ids came with {len(features)} rows of features.")
        block = self._index.load(features, ids)
        if self._blocks and self._blocks[0].features.shape[1] != features.shape[1]:
            width = self._blocks[0].features.shape[1]
            raise UserError(
                f"Features are {features.shape[1]} wide, but earlier rows of this version are {width} wide."
            )
        if len(ids):
            self._blocks.append(_Rows(ids, block))
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
        loaded = [held.block.loaded for held in self._blocks]
        max_abs, max_norm = (max(getattr(each, name) for each in loaded) for name in ("max_abs", "max_norm"))
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
            for centre in chosen[known:]:
                squares = self._index.backend.distances(block.features, centre[None], None).astype(np.float32)
                np.minimum(block.nearest_chosen, squares, out=block.nearest_chosen)
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
            for held in self._blocks:
                held.block.labels = held.block.bounds = None
        else:
            drift = Drift.between(self._centroids, centroids)
        partial = Partial(before.sums.copy(), before.counts.copy())
        self._centroids = None  # whoever is interrupted half way starts afresh
        self._index.prepare(centroids, max_norm)
        for held in self._blocks:
            self._relabel(held.block, drift, partial, scale)
        self._partial, self._centroids, self._scale = partial, centroids.copy(), scale
        return partial

    def _relabel(self, block: Block, drift: Drift | None, partial: Partial, scale: Scale) -> None:
        """Bring the labels of a block up to date, and `partial` with them."""
        if self._prune and block.bounds is None:
            block.bounds = Bounds(block.loaded.norms, block.loaded.reference, len(partial.counts))
        elif block.bounds is not None and drift is not None:
            block.bounds.move(drift)
        self._index.backend.relabel(block, partial, scale.shift)

    def farthest(self, version: int, centroids: Features, scale: Scale, max_norm: float, num: int) -> list[Candidate]:
        """Return up to `num` rows farthest from their centroid (value = -squared distance), farthest first."""
        self.assign(version, centroids, scale, max_norm)
        found: list[Candidate] = []
        for block in self._blocks:
            distances = self._index.backend.distances(block.features, centroids, block.labels)
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
        labels = [block.labels for block in self._blocks]
        if not ids:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        return np.concatenate(ids), np.concatenate(labels)

    def inertia(self, version: int, centroids: Features, scale: Scale, max_norm: float, shift: int) -> int:
        """Return the sum of squared distances to the centroids as an integer, to be multiplied by 2**-shift."""
        self.assign(version, centroids, scale, max_norm)
        total = 0
        for block in self._blocks:
            squares = self._index.backend.distances(block.features, centroids, block.labels)
            total += int(np.rint(np.ldexp(squares, shift)).astype(np.int64).sum())
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
            own = np.einsum("ij,ij->i", block.features, weights.T[block.labels]) + offsets[block.labels]
            for k, part in enumerate(parts):
                if k % _TOGETHER == 0:
                    scores = block.features @ weights[:, k : k + _TOGETHER]
                # The screen may misjudge an extra cost by twice the tolerance; what it leaves is measured exactly.
                extra = scores[:, k % _TOGETHER] + offsets[k] - own
                extra[block.labels == k] = np.inf
                limit = np.partition(extra, num - 1)[num - 1] if num < len(extra) else np.inf
                rows = np.flatnonzero((extra <= limit + 2 * tolerance) & (block.labels != k))
                part.append((_extra_costs(block, rows, centroids, k), block.row_ids[rows]))
        return [_cheapest(part, num) for part in parts]


def _extra_costs(block: _Rows, rows: Ids, centroids: Features, k: int) -> npt.NDArray[np.float64]:
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


def _smaller(best: Candidate | None, block: _Rows, values: npt.NDArray[np.float64]) -> Candidate:
    tied = np.flatnonzero(values == values.min())
    row = int(tied[np.argmin(block.row_ids[tied])])
    label = -1 if block.block.labels is None else int(block.labels[row])
    mine = Candidate(float(values[row]), int(block.row_ids[row]), label, block.features[row].copy())
    return mine if best is None or (mine.value, mine.row_id) < (best.value, best.row_id) else best
