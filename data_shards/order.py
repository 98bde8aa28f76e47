"""Which rows are trained in which step: a pure function of (seed, epoch, assignment, labels).

The order is global. Every rank computes the whole list and takes its slice of every batch, so neither the number of
ranks nor a restart can change what is trained. Nothing here is a stream: asking for epoch 7 first, or twice, gives the
same list. From 2^22 rows on, nobody could hold or draw the list: `long_order` then computes what is asked for.

Batches are class balanced (B rows = B/n classes with n rows each), because the pair losses need positives and
negatives in one batch (Sanakoyeu et al. 2019, "Divide and Conquer the Embedding Space for Metric Learning"). Where we
differ from the published sampler: a cluster smaller than a batch gives full batches (classes that ran out repeat their
rows) instead of ending the run; a cluster with fewer classes than a batch needs takes more rows of each class; a
cluster without two classes of two rows has no negative pair and gets no step.

Legend: S samples, K subspaces, B rows per batch, n rows per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_shards import keyed
from data_shards.errors import UserError
from data_shards.grouping import Grouping, Pool, grouped, label_counts
from data_shards.long_grouping import by_class, long_grouped
from data_shards.long_order import LongOrder

Ints = npt.NDArray[np.integer[Any]]
GlobalBatch = tuple[int | None, npt.NDArray[np.int64]]
LONG = 2**22  # rows of a split; the order of shorter ones is what it always was


@dataclass(frozen=True)
class BatchRule:
    """How an epoch is cut into batches.

    batch_size: rows of the global batch. samples_per_class: rows of each class in it; 0 = plain shuffled batches.
    steps: steps of an epoch; None = one per batch_size assigned rows. temperature: steps of a subspace go with
    size**temperature (1 proportional, 0 uniform). schedule: "budget" as just said, or "published": every subspace gets
    as many steps as the largest, in turn. class_temperature: classes are drawn with weights size**class_temperature
    (0 all alike, as published; towards 1 the prior of the data shows through, and common classes are in most batches).
    """

    batch_size: int
    samples_per_class: int
    steps: int | None = None
    temperature: float = 1.0
    schedule: Literal["budget", "published"] = "budget"
    class_temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raise UserError for numbers that cannot make a batch."""
        size, per_class = self.batch_size, self.samples_per_class
        if size < 1 or per_class < 0:
            raise UserError(f"batch size {size} with {per_class} samples per class: use a batch size of at least 1")
        if per_class and size % per_class:
            raise UserError(f"batch size {size} is not divisible by {per_class} samples per class: change one of them")
        if per_class and size < 2 * per_class:
            raise UserError(
                f"batch size {size} with {per_class} samples per class leaves one class per batch, hence no negative "
                "pair: use at most half the batch size per class"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"{self.steps} steps per epoch: use at least 1, or none for one pass over the data")
        for what in ("temperature", "class_temperature"):
            if getattr(self, what) < 0:
                raise UserError(f"{what} {getattr(self, what)} is negative: use 1 (proportional) down to 0 (uniform)")
        if self.schedule not in ("budget", "published"):
            raise UserError(f"unknown schedule '{self.schedule}': use budget or published")


def check_labels(labels: Ints, rule: BatchRule) -> None:
    """Raise UserError if no epoch with these training labels (S,) could follow the rule."""
    _check_counts(label_counts(labels)[1], rule)


def _check_counts(counts: npt.NDArray[np.int64], rule: BatchRule) -> None:
    if not len(counts):
        raise UserError("the training split is empty: add images to it")
    if not rule.samples_per_class:
        return
    if len(counts) < 2:
        raise UserError("the training split has one class only, hence no negative pair: add images of another class")
    if rule.samples_per_class > counts.max():
        raise UserError(
            f"{rule.samples_per_class} samples per class, but the largest class of the training split has "
            f"{counts.max()}: lower samples_per_class"
        )


def batches(
    seed: int, epoch: int, assignment: Ints | None, labels: Ints, num_subspaces: int, rule: BatchRule
) -> Sequence[GlobalBatch]:
    """Return the global batches of an epoch: (k, (B,) int64 row numbers), each of exactly B rows of subspace k.

    assignment: (S,) subspace of every row, -1 = left out; None, or one subspace: every row belongs to subspace 0.
    labels: (S,) classes. Raises UserError if the labels cannot follow the rule (see `check_labels`).
    """
    labels = np.asarray(labels)
    is_long = len(labels) >= LONG
    is_found = is_long and rule.samples_per_class > 0  # the labels of plain batches take all rows: these are listed
    _check_counts(by_class(labels).counts if is_found else label_counts(labels)[1], rule)
    if assignment is None or num_subspaces == 1:
        assignment, num_subspaces = None, max(num_subspaces, 1)
    elif len(assignment) != len(labels):
        raise UserError(f"the assignment has {len(assignment)} rows, the training split {len(labels)}: recluster")
    kinds = labels if rule.samples_per_class else np.zeros_like(labels)
    groups = (long_grouped if is_found else grouped)(assignment, kinds, num_subspaces)
    pools = _pools(groups, rule)
    num_assigned = len(groups.members)
    if rule.schedule == "published":
        schedule = _published(pools, rule)
    else:
        schedule = _budget(seed, epoch, pools, rule.steps or max(1, round(num_assigned / rule.batch_size)), rule)
    if is_long:
        given = None if rule.samples_per_class else labels
        return LongOrder(seed, epoch, rule.batch_size, schedule, pools, bool(rule.class_temperature), given)
    counts = np.bincount(schedule, minlength=num_subspaces)
    drawn = {p.subspace: iter(_draw(seed, epoch, p, int(counts[p.subspace]))) for p in pools}
    return [(int(k), next(drawn[int(k)])) for k in schedule]


def _pools(groups: Grouping, rule: BatchRule) -> list[Pool]:
    """Return the subspaces that get steps: those with a negative pair, or, if there is none, with a positive pair."""
    pools = [_pool(k, groups, rule) for k in range(len(groups.bounds))]
    alive = [p for p in pools if len(p.sizes) >= (2 if rule.samples_per_class else 1)]
    # Every cluster pure in one class: a batch has no negative, but the run must live on to the next clustering.
    alive = alive or [p for p in pools if len(p.sizes)]
    if not alive:
        raise UserError("no subspace has a class with two samples: use fewer subspaces or more images per class")
    return alive


def _pool(subspace: int, groups: Grouping, rule: BatchRule) -> Pool:
    """Return the pool of one subspace; classes with a single row in it are left out (they have no positive pair)."""
    bounds = groups.bounds[subspace]
    used = np.flatnonzero(np.diff(bounds) >= (2 if rule.samples_per_class else 1))
    sizes = np.diff(bounds)[used]
    wanted = rule.batch_size // rule.samples_per_class if rule.samples_per_class else 1
    quotas = np.full(len(used), rule.samples_per_class or rule.batch_size)
    if 0 < len(used) < wanted:
        quotas = _quotas(sizes, rule)
    weights = sizes.astype(np.float64) ** rule.class_temperature
    shares = weights / max(weights.sum(), 1.0)
    found = groups.members, bounds[:-1][used], sizes, groups.classes[used], quotas, min(wanted, len(used)), shares
    return Pool(subspace, *found)


def _quotas(sizes: npt.NDArray[np.int64], rule: BatchRule) -> npt.NDArray[np.int64]:
    """Return rows per class when there are too few classes: first rows that are not in the batch yet, evenly."""
    quotas = np.full(len(sizes), rule.samples_per_class, dtype=np.int64)
    while (missing := rule.batch_size - int(quotas.sum())) > 0:
        spare = np.flatnonzero(quotas < sizes)
        takers = spare if len(spare) else np.arange(len(sizes))
        quotas[takers[:missing]] += 1
    return quotas


def _published(pools: list[Pool], rule: BatchRule) -> Ints:
    """Return the subspace of every step: round robin, each as often as the largest fills batches."""
    laps = max(1, max(p.size // rule.batch_size for p in pools))
    steps = rule.steps or laps * len(pools)
    turns: Ints = np.resize(np.array([p.subspace for p in pools]), steps)
    return turns


def _budget(seed: int, epoch: int, pools: list[Pool], steps: int, rule: BatchRule) -> Ints:
    """Return the subspace of every step: a fixed number of steps, shared by size, spread evenly over the epoch."""
    weights = np.array([p.size for p in pools], dtype=np.float64) ** rule.temperature
    if steps < len(pools):  # not enough for one each: other subspaces have their turn in other epochs
        rng = keyed.generator(seed, "order/turn", epoch)
        chosen = rng.choice(len(pools), steps, replace=False, p=weights / weights.sum())
        counts = np.bincount(chosen, minlength=len(pools))
    else:
        counts = apportion(weights, steps)
    subspaces = np.array([p.subspace for p in pools])
    phases = keyed.uniform(keyed.fold(keyed.key(seed, "order/phase", epoch), subspaces), 1)[:, 0]
    times = [(np.arange(c) + phase) / c for c, phase in zip(counts, phases, strict=True) if c]
    schedule: Ints = np.repeat(subspaces, counts)[np.argsort(np.concatenate(times), kind="stable")]
    return schedule


def apportion(weights: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Return (K,) whole numbers that sum to `total` (>= K), at least 1 each, by largest remainders of `weights`."""
    exact = weights / weights.sum() * total
    counts: npt.NDArray[np.int64] = np.floor(np.maximum(exact - 1e-9, 0)).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]] += 1
    while counts.min() < 1:
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    return counts


def _draw(seed: int, epoch: int, pool: Pool, steps: int) -> npt.NDArray[np.int64]:
    """Return (steps, B) rows of one subspace."""
    rng = keyed.generator(seed, "order", epoch, pool.subspace)
    groups, num_groups = pool.groups, len(pool.sizes)
    if pool.per_batch == num_groups:
        walks = [_walk(rng, g, steps, int(q)) for g, q in zip(groups, pool.quotas, strict=True)]
        rows = np.concatenate(walks, axis=1)
    else:
        per_batch, shares = pool.per_batch, pool.shares
        picks = [rng.choice(num_groups, per_batch, replace=False, p=shares) for _ in range(steps)]
        chosen = np.array(picks, dtype=np.int64).reshape(-1)
        visits = np.bincount(chosen, minlength=num_groups)
        walks = [_walk(rng, groups[g], int(visits[g]), int(pool.quotas[g])) for g in np.flatnonzero(visits)]
        rows = np.empty((len(chosen), int(pool.quotas[0])), dtype=np.int64)
        if walks:
            rows[np.argsort(chosen, kind="stable")] = np.concatenate(walks)
        rows = rows.reshape(steps, pool.per_batch * rows.shape[1])
    # Mixed, so that the slice of a rank, hence its batch statistics, is not one class.
    mixed: npt.NDArray[np.int64] = rng.permuted(rows, axis=1)
    return mixed


def _walk(rng: np.random.Generator, members: Ints, visits: int, quota: int) -> npt.NDArray[np.int64]:
    """Return (visits, quota) rows: along a shuffled list, shuffled anew where a visit would overrun it.

    A list shorter than the quota is repeated, so that no row comes up twice more often than another.
    """
    members = members.astype(np.int64)
    visits_per_lap, laps_per_visit = len(members) // quota, -(-quota // len(members))
    if visits_per_lap:
        laps = rng.permuted(np.tile(members, (-(-visits // visits_per_lap), 1)), axis=1)
        return laps[:, : visits_per_lap * quota].reshape(-1, quota)[:visits]
    laps = rng.permuted(np.tile(members, (visits * laps_per_visit, 1)), axis=1)
    return laps.reshape(visits, laps_per_visit * len(members))[:, :quota]
