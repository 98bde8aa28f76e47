"""Which subspace trains on which row: a frozen, versioned, hashable value made from the clusters of one k-means.

Three things happen to raw clusters before ranks may use them. Clusters get the ids of the subspaces that trained on
most of their rows (Hungarian matching on the contingency table), so a learner keeps its data when k-means numbers
its clusters anew. Clusters too small, or with too few classes for a triplet loss, are repaired. And the result is
hashed, so ranks and checkpoints can tell that they mean the same assignment.

Legend: S rows, K subspaces, R reserves per cluster.
"""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.kmeans import KMeansResult
from data_shards.errors import UserError
from data_shards.grouping import numbered
from data_shards.long_grouping import long_grouped
from data_shards.order import LONG

Labels = npt.NDArray[np.signedinteger[Any]]
Counts = npt.NDArray[np.int64]

LEFT_OUT = -1
_CHUNK = 2**16  # rows that are counted together and stay in the cache; of 1e8 at once gigabytes would be made


@dataclass(frozen=True)
class RepairRule:
    """When a cluster can be trained on: at least `min_size` rows and `min_classes` classes with two rows or more."""

    min_size: int = 2
    min_classes: int = 2


@dataclass(frozen=True, eq=False)
class Assignment:
    """labels (S,), row -> subspace, -1 = left out; `version` counts reclusterings; ids are 0..num_subspaces-1.

    Labels are int32; int8 from `order.LONG` rows on, where there are fewer than 128 subspaces.
    """

    labels: Labels
    version: int
    num_subspaces: int
    _tables: list[tuple[Any, Counts]] = field(default_factory=list, init=False, repr=False)  # by both labels

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1:
            raise UserError(f"An assignment has one label per row, got an array of shape {labels.shape}.")
        _check(labels, self.num_subspaces)
        object.__setattr__(self, "labels", _frozen(labels, _kind(len(labels), self.num_subspaces)))

    @cached_property
    def hash(self) -> str:
        """The sha256 of version, number of subspaces and labels."""
        digest = hashlib.sha256(f"assignment {self.version} {self.num_subspaces} {self.labels.size} ".encode())
        digest.update(np.ascontiguousarray(self.labels, dtype=self.labels.dtype.newbyteorder("<")).data)
        return digest.hexdigest()

    @classmethod
    def single(cls, num_rows: int, version: int = 0) -> Assignment:
        """Every row in subspace 0: K = 1 never clusters."""
        return cls(np.zeros(num_rows, dtype=np.int32), version, 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Assignment) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    @cached_property
    def counts(self) -> Counts:
        """Rows per subspace, (K,)."""
        if self._tables:
            return self._tables[0][1].sum(axis=1)[1:]
        counts = np.zeros(self.num_subspaces + 1, dtype=np.int64)
        for chunk in _chunks(len(self.labels)):
            counts += np.bincount(self.labels[chunk] + np.int32(1), minlength=self.num_subspaces + 1)
        return counts[1:]

    def aligned_to(
        self, previous: Assignment, num_subspaces: int | None = None, new_tail: int | None = None
    ) -> Assignment:
        """Renumber the clusters so that as many rows as possible keep the subspace of `previous`.

        The matching runs over the contingency table, from *current* cluster to *previous* id (the published code
        applied it the other way round), and is rectangular: after growth the cluster without a partner goes to
        `new_tail` (default: the last id), where the published code gave it whichever cluster came last.
        """
        mapping = _matching(contingency(self, previous), num_subspaces or 0, new_tail)
        return _renumbered(self.labels, mapping, self.version, max(self.num_subspaces, num_subspaces or 0))

    def nmi_to(self, previous: Assignment) -> float:
        """Return the normalised mutual information (arithmetic mean) with `previous` over rows that both assign."""
        table = contingency(self, previous)
        total = table.sum()
        if total == 0:
            return 0.0
        joint = table / total
        rows, columns = joint.sum(axis=1), joint.sum(axis=0)
        entropies = _entropy(rows) + _entropy(columns)
        mutual = entropies - _entropy(joint.ravel())
        return 1.0 if entropies == 0.0 else float(np.clip(2.0 * mutual / entropies, 0.0, 1.0))

    def repaired(
        self,
        rule: RepairRule,
        class_labels: npt.NDArray[np.integer],
        centroids: npt.NDArray[np.float32],
        reserves: npt.NDArray[np.int64] | None = None,
    ) -> Assignment:
        """Make every cluster trainable, or empty.

        A deficient cluster first takes rows from its `reserves` (K, R): the rows of other clusters that lose least by
        moving, and only while that leaves their own cluster no less trainable. Keeping the subspace alive is better
        than emptying it: well-trained clusters are often pure, which would leave their subspace untrained for good, and
        the nearest rows of other classes are just the negatives that it lacks. Where the reserves do not suffice, the
        cluster is merged into the nearest remaining one by (K, F) centroids; its subspace then has no rows and gets no
        steps.
        """
        if not len(self.labels):
            return self
        grouping = long_grouped(self.labels, class_labels, self.num_subspaces)
        classes, table = grouping.classes, np.diff(grouping.bounds, axis=1)
        deficient = sorted(
            np.flatnonzero((table.sum(axis=1) > 0) & ~_trainable(table, rule)).tolist(),
            key=lambda k: (table[k].sum(), k),
        )
        if not deficient:
            return self
        labels = self.labels.copy()
        for k in deficient:
            if reserves is not None:
                reserve = reserves[k][reserves[k] >= 0]
                _top_up(k, labels, numbered(classes, class_labels[reserve]), table, reserve, rule)
        _merge(labels, table, rule, centroids)
        labels.flags.writeable = False
        found = replace(self, labels=labels)
        vars(found)["counts"] = table.sum(axis=1)
        return found


def contingency(current: Assignment, previous: Assignment) -> Counts:
    """Return (K, K_previous) counts of rows by both labels; rows left out by either do not count."""
    if len(current.labels) != len(previous.labels):
        raise UserError(f"Assignments of {len(current.labels)} and {len(previous.labels)} rows cannot be compared.")
    for other, table in current._tables:
        if other() is previous:
            return table[1:, 1:]
    table = _by_both(current.labels, current.num_subspaces, previous.labels, previous.num_subspaces)
    current._tables.append((weakref.ref(previous), table))
    return table[1:, 1:]


def parents(current: Assignment, previous: Assignment | None) -> list[int]:
    """Return (K,) the id of `previous` that most rows of each cluster had; 0 where there was none."""
    if previous is None:
        return [0] * current.num_subspaces
    return [int(k) for k in contingency(current, previous).argmax(axis=1)]


def from_clusters(
    result: KMeansResult,
    num_rows: int,
    num_subspaces: int,
    previous: Assignment | None = None,
    class_labels: npt.NDArray[np.integer] | None = None,
    rule: RepairRule | None = None,
    new_tail: int | None = None,
    total: Counts | None = None,
) -> Assignment:
    """Turn a k-means over rows 0..num_rows-1 into the assignment of its version: aligned, then repaired.

    `total` is the sum of `overlap` over all rows, where ranks have shared it out.
    """
    labels, num_ids = _spread(result.row_ids, result.labels, num_rows), max(num_subspaces, result.num_clusters)
    _check(labels, result.num_clusters)
    mapping, table = np.arange(result.num_clusters), None
    if previous is not None:
        table = overlap(result, num_rows, previous, slice(None)) if total is None else total
        mapping = _matching(table[1:, 1:], num_ids, new_tail)
    aligned = _renumbered(labels, mapping, result.version, num_ids)
    del labels
    if table is not None:  # counted once for the matching, and for what is told of the clusters
        counts = np.zeros((num_ids + 1, table.shape[1]), dtype=np.int64)
        counts[np.append(0, mapping + 1)] = table
        aligned._tables.append((weakref.ref(previous), counts))
    if rule is None or class_labels is None:
        return aligned
    centroids = np.full((num_ids, result.centroids.shape[1]), np.inf, dtype=np.float32)
    reserves = np.full((num_ids, result.reserves.shape[1]), -1, dtype=np.int64)
    centroids[mapping], reserves[mapping] = result.centroids, result.reserves
    return aligned.repaired(rule, class_labels, centroids, reserves)


def overlap(result: KMeansResult, num_rows: int, previous: Assignment, rows: slice) -> Counts:
    """Return (K + 1, K_previous + 1) how many of some rows have each pair of labels; those left out come first."""
    labels = _spread(result.row_ids, result.labels, num_rows)
    if len(labels) != len(previous.labels):
        raise UserError(f"Assignments of {len(labels)} and {len(previous.labels)} rows cannot be compared.")
    _check(labels[rows], result.num_clusters)
    return _by_both(labels[rows], result.num_clusters, previous.labels[rows], previous.num_subspaces)


def _kind(num_rows: int, num_subspaces: int) -> np.dtype[Any]:
    """Return the type of labels. Of many rows every byte counts; those of few stay what checkpoints hold."""
    return np.dtype(np.int8 if num_rows >= LONG and num_subspaces <= np.iinfo(np.int8).max else np.int32)


def _check(labels: Labels, num_subspaces: int) -> None:
    """Raise UserError for labels that no subspace has."""
    if labels.size and (labels.min() < LEFT_OUT or labels.max() >= num_subspaces):
        raise UserError(f"Assignment labels must lie in -1..{num_subspaces - 1}; found others.")


def _frozen(labels: Labels, kind: np.dtype[Any]) -> Labels:
    """Return labels that nobody can change: a copy, unless they are read-only, as what is made here is."""
    if labels.dtype == kind and labels.flags.owndata and not labels.flags.writeable:
        return labels
    copy = np.array(labels, dtype=kind)
    copy.flags.writeable = False
    return copy


def _spread(row_ids: npt.NDArray[np.int64], labels: Labels, num_rows: int) -> Labels:
    """Return the labels of ascending rows, each there once, as those of rows 0..num_rows-1: -1 where there is none."""
    if len(row_ids) == num_rows:
        return labels
    out = np.full(num_rows, LEFT_OUT, dtype=np.int32)
    for chunk in _chunks(len(row_ids)):
        out[row_ids[chunk]] = labels[chunk]
    out.flags.writeable = False
    return out


def _by_both(labels: Labels, num_subspaces: int, previous: Labels, num_previous: int) -> Counts:
    """Return (K + 1, K_previous + 1) counts of rows by both labels; those left out come first."""
    width = num_previous + 1
    cells = np.zeros((num_subspaces + 1) * width, dtype=np.int64)
    kind = np.min_scalar_type(len(cells) - 1)
    for chunk in _chunks(len(labels)):
        rows = labels[chunk].astype(kind)  # -1 becomes the largest number, and 0 when 1 is added
        rows += 1
        rows *= width
        rows += previous[chunk].astype(kind)
        rows += 1
        cells += np.bincount(rows, minlength=len(cells))
    return cells.reshape(-1, width)


def _matching(table: Counts, num_subspaces: int, new_tail: int | None) -> Counts:
    """Return (K,) the id of each cluster by its rows (K, K_previous) of the subspaces before, see `aligned_to`."""
    from scipy.optimize import linear_sum_assignment  # here: it takes as long to import as all of ours

    num_clusters, num_ids = len(table), max(len(table), num_subspaces)
    # Most rows keep their subspace. With equal numbers this is the same as the least symmetric difference.
    current, old = linear_sum_assignment(table[:, :num_ids], maximize=True)
    mapping = np.full(num_clusters, -1, dtype=np.int64)
    mapping[current] = old
    free = [k for k in range(num_ids) if k not in set(old.tolist())]
    tail = num_ids - 1 if new_tail is None else new_tail
    free.sort(key=lambda k: (k != tail, k))
    for cluster in np.flatnonzero(mapping < 0):
        mapping[cluster] = free.pop(0)
    return mapping


def _renumbered(labels: Labels, mapping: Counts, version: int, num_subspaces: int) -> Assignment:
    """Return the assignment of clusters (S,) renumbered by `mapping` (K,); those left out stay so."""
    if np.array_equal(mapping, np.arange(len(mapping))):
        return Assignment(labels, version, num_subspaces)
    kind = _kind(len(labels), num_subspaces)
    table, found = np.append(mapping, LEFT_OUT).astype(kind), np.empty(len(labels), dtype=kind)
    for chunk in _chunks(len(labels)):
        table.take(labels[chunk], out=found[chunk], mode="wrap")  # -1 is the last
    found.flags.writeable = False
    return Assignment(found, version, num_subspaces)


def _chunks(num_rows: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, num_rows, _CHUNK)]


def _entropy(probabilities: npt.NDArray[np.float64]) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())


def _trainable(table: Counts, rule: RepairRule) -> npt.NDArray[np.bool_]:
    enough = (table.sum(axis=-1) >= rule.min_size) & ((table >= 2).sum(axis=-1) >= rule.min_classes)
    return np.asarray(enough)


def _top_up(
    k: int,
    labels: Labels,
    kinds: npt.NDArray[np.integer],
    table: Counts,
    reserve: npt.NDArray[np.int64],
    rule: RepairRule,
) -> None:
    """Move rows of `reserve` (R,), cheapest first, into cluster k until it is trainable; undo all if that fails.

    `kinds` (R,) are their classes.
    While classes are missing, only rows of classes that do not have two members yet are taken.
    """
    moves: list[tuple[int, int, int]] = []
    for row, kind in zip(reserve.tolist(), kinds.tolist(), strict=True):
        if _trainable(table[k], rule):
            break
        donor = int(labels[row])
        short_of_classes = np.count_nonzero(table[k] >= 2) < rule.min_classes
        if donor in (k, LEFT_OUT) or (short_of_classes and table[k, kind] >= 2):
            continue
        pairs_before = min(int(np.count_nonzero(table[donor] >= 2)), rule.min_classes)
        table[donor, kind] -= 1
        if table[donor].sum() < rule.min_size or np.count_nonzero(table[donor] >= 2) < pairs_before:
            table[donor, kind] += 1
            continue
        table[k, kind] += 1
        labels[row] = k
        moves.append((row, kind, donor))
    if _trainable(table[k], rule):
        return
    for row, kind, donor in moves:
        labels[row] = donor
        table[donor, kind] += 1
        table[k, kind] -= 1


def _merge(labels: Labels, table: Counts, rule: RepairRule, centroids: npt.NDArray[np.float32]) -> None:
    """Merge deficient clusters, smallest first, into the nearest other one until all are trainable or one is left."""
    wide = centroids.astype(np.float64)
    while True:
        sizes = table.sum(axis=1)
        filled = np.flatnonzero(sizes > 0)
        deficient = [k for k in filled if not _trainable(table[k], rule)]
        if not deficient or len(filled) < 2:
            return
        k = min(deficient, key=lambda c: (sizes[c], c))
        others = filled[filled != k]
        target = others[np.argmin(((wide[others] - wide[k]) ** 2).sum(axis=1))]
        labels[labels == k] = target
        table[target] += table[k]
        table[k] = 0
