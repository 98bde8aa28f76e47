"""Which subspace trains on which row: a frozen, versioned, hashable value made from the clusters of one k-means.

Three things happen to raw clusters before ranks may use them. Clusters get the ids of the subspaces that trained on
most of their rows (Hungarian matching on the contingency table), so a learner keeps its data when k-means numbers
its clusters anew. Clusters too small, or with too few classes for a triplet loss, are repaired. And the result is
hashed, so ranks and checkpoints can tell that they mean the same assignment.

Legend: S rows, K subspaces, R reserves per cluster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cluster.kmeans import KMeansResult
from data_shards.errors import UserError
from data_shards.grouping import label_counts, numbered

Labels = npt.NDArray[np.int32]
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
    """labels (S,) int32, row -> subspace, -1 = left out; `version` counts reclusterings; ids are 0..num_subspaces-1."""

    labels: Labels
    version: int
    num_subspaces: int

    def __post_init__(self) -> None:
        labels = _frozen(self.labels)
        if labels.ndim != 1:
            raise UserError(f"An assignment has one label per row, got an array of shape {labels.shape}.")
        if labels.size and (labels.min() < LEFT_OUT or labels.max() >= self.num_subspaces):
            raise UserError(f"Assignment labels must lie in -1..{self.num_subspaces - 1}; found others.")
        object.__setattr__(self, "labels", labels)

    @cached_property
    def hash(self) -> str:
        """The sha256 of version, number of subspaces and labels."""
        digest = hashlib.sha256(f"assignment {self.version} {self.num_subspaces} {self.labels.size} ".encode())
        digest.update(np.ascontiguousarray(self.labels, dtype="<i4").data)
        return digest.hexdigest()

    @classmethod
    def single(cls, num_rows: int, version: int = 0) -> Assignment:
        """Every row in subspace 0: K = 1 never clusters."""
        return cls(np.zeros(num_rows, dtype=np.int32), version, 1)

    @classmethod
    def from_rows(
        cls, row_ids: npt.NDArray[np.int64], labels: Labels, num_rows: int, num_subspaces: int, version: int
    ) -> Assignment:
        """Spread labels over rows 0..num_rows-1; rows that were not clustered are left out."""
        out = np.full(num_rows, LEFT_OUT, dtype=np.int32)
        for chunk in _chunks(len(row_ids)):
            out[row_ids[chunk]] = labels[chunk]
        out.flags.writeable = False
        return cls(out, version, num_subspaces)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Assignment) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def counts(self) -> Counts:
        """Rows per subspace, (K,)."""
        counts = np.zeros(self.num_subspaces + 1, dtype=np.int64)
        for chunk in _chunks(len(self.labels)):
            counts += np.bincount(self.labels[chunk] + 1, minlength=self.num_subspaces + 1)
        return counts[1:]

    def mapping_to(self, previous: Assignment, num_subspaces: int | None = None, new_tail: int | None = None) -> Counts:
        """Return (K,) the id that each cluster of this assignment takes, see `aligned_to`."""
        from scipy.optimize import linear_sum_assignment  # here: it takes as long to import as all of ours

        num_ids = max(self.num_subspaces, num_subspaces or 0)
        num_old = min(previous.num_subspaces, num_ids)
        table = contingency(self, previous)[:, :num_old]
        # Most rows keep their subspace. With equal numbers this is the same as the least symmetric difference.
        current, old = linear_sum_assignment(table, maximize=True)
        mapping = np.full(self.num_subspaces, -1, dtype=np.int64)
        mapping[current] = old
        free = [k for k in range(num_ids) if k not in set(old.tolist())]
        tail = num_ids - 1 if new_tail is None else new_tail
        free.sort(key=lambda k: (k != tail, k))
        for cluster in np.flatnonzero(mapping < 0):
            mapping[cluster] = free.pop(0)
        return mapping

    def aligned_to(
        self, previous: Assignment, num_subspaces: int | None = None, new_tail: int | None = None
    ) -> Assignment:
        """Renumber the clusters so that as many rows as possible keep the subspace of `previous`.

        The matching runs over the contingency table, from *current* cluster to *previous* id (the published code
        applied it the other way round), and is rectangular: after growth the cluster without a partner goes to
        `new_tail` (default: the last id), where the published code gave it whichever cluster came last.
        """
        mapping = self.mapping_to(previous, num_subspaces, new_tail)
        return Assignment(_mapped(self.labels, mapping), self.version, max(self.num_subspaces, num_subspaces or 0))

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
        labels = self.labels
        classes = label_counts(class_labels)[0]
        shape = (self.num_subspaces + 1, max(len(classes), 1))
        cells = np.zeros(shape[0] * shape[1], dtype=np.int64)
        kind = np.dtype(np.int32 if len(cells) < 2**31 else np.int64)
        for chunk in _chunks(len(labels)):
            kinds = numbered(classes, class_labels[chunk])
            cells += np.bincount((labels[chunk] + 1) * kind.type(shape[1]) + kinds, minlength=len(cells))
        table = cells.reshape(shape)[1:]
        deficient = sorted(
            np.flatnonzero((table.sum(axis=1) > 0) & ~_trainable(table, rule)).tolist(),
            key=lambda k: (table[k].sum(), k),
        )
        if not deficient:
            return self
        labels = labels.copy()
        for k in deficient:
            if reserves is not None:
                reserve = reserves[k][reserves[k] >= 0]
                _top_up(k, labels, numbered(classes, class_labels[reserve]), table, reserve, rule)
        _merge(labels, table, rule, centroids)
        labels.flags.writeable = False
        return replace(self, labels=labels)


def contingency(current: Assignment, previous: Assignment) -> Counts:
    """Return (K, K_previous) counts of rows by both labels; rows left out by either do not count."""
    if len(current.labels) != len(previous.labels):
        raise UserError(f"Assignments of {len(current.labels)} and {len(previous.labels)} rows cannot be compared.")
    shape = (current.num_subspaces + 1, previous.num_subspaces + 1)
    cells = np.zeros(shape[0] * shape[1], dtype=np.int64)
    for chunk in _chunks(len(current.labels)):
        rows = (current.labels[chunk] + 1) * np.int32(shape[1]) + (previous.labels[chunk] + 1)
        cells += np.bincount(rows, minlength=len(cells))
    return cells.reshape(shape)[1:, 1:]


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
) -> Assignment:
    """Turn a k-means over rows 0..num_rows-1 into the assignment of its version: aligned, then repaired."""
    raw = Assignment.from_rows(result.row_ids, result.labels, num_rows, result.num_clusters, result.version)
    num_ids = max(num_subspaces, result.num_clusters)
    mapping = np.arange(result.num_clusters)
    if previous is not None:
        mapping = raw.mapping_to(previous, num_ids, new_tail)
    aligned = Assignment(_mapped(raw.labels, mapping), result.version, num_ids)
    del raw  # 4 bytes of every row
    if rule is None or class_labels is None:
        return aligned
    centroids = np.full((num_ids, result.centroids.shape[1]), np.inf, dtype=np.float32)
    reserves = np.full((num_ids, result.reserves.shape[1]), -1, dtype=np.int64)
    centroids[mapping], reserves[mapping] = result.centroids, result.reserves
    return aligned.repaired(rule, class_labels, centroids, reserves)


def _frozen(labels: Labels) -> Labels:
    """Return labels that nobody can change: a copy, unless they are read-only, as what is made here is."""
    is_own = isinstance(labels, np.ndarray) and labels.dtype == np.int32 and labels.flags.owndata
    if is_own and not labels.flags.writeable:
        return labels
    copy = np.array(labels, dtype=np.int32)
    copy.flags.writeable = False
    return copy


def _mapped(labels: Labels, mapping: Counts) -> Labels:
    """Return labels (S,) renumbered by `mapping` (K,); those left out stay so."""
    if np.array_equal(mapping, np.arange(len(mapping))):
        return labels
    table, found = np.append(mapping, LEFT_OUT).astype(np.int32), np.empty(len(labels), dtype=np.int32)
    for chunk in _chunks(len(labels)):
        found[chunk] = table[labels[chunk]]  # -1 is the last
    found.flags.writeable = False
    return found


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
