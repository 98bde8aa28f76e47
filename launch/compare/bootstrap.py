"""How sure is a difference between two methods? A paired bootstrap on two levels: seeds, and within a seed images.

Every resample draws the seeds with replacement, and for each drawn seed the images of the split with replacement
(Efron and Tibshirani 1993, chapters 6 and 16). Draws are keyed by dataset and resample, not by method, so all methods
are scored on the same draws: that is the pairing.

Scores of retrieval are means over queries, so a resample re-weights the values of the queries; galleries stay whole.
NMI and AMI are computed anew from the resampled contingency table. Its duplicates look like agreement, so resampled
values lie too high, the more the looser the clusters; those of a run are therefore moved by as much as their mean lies
above its score. AMI takes its expected mutual information from the whole split: computing it for
every resample costs a thousand times as much.

Legend: N images, B resamples, b resamples of a chunk, S seeds, P pairs of class and cluster that occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.keyed import generator
from launch.compare.queries import Floats, Ints, Queries

RESAMPLES = 2000
LEVEL = 0.95
CLUSTERING = ("nmi", "ami")
_CELLS = 1 << 22  # of the counts that are held at a time


@dataclass(frozen=True)
class Interval:
    """A difference to the reference: over all paired seeds, and where 95 % of its resamples lie."""

    difference: float
    low: float
    high: float
    num_seeds: int


def interval(other: Floats, reference: Floats, difference: float, num_seeds: int) -> Interval:
    """Return the percentile interval of the (B,) resampled scores of a method less those of the reference."""
    low, high = np.quantile(other - reference, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(difference, float(low), float(high), num_seeds)


def paired(runs: Sequence[Queries]) -> bool:
    """Return whether all runs were evaluated on the same images in the same order."""
    first = runs[0]
    return all(
        np.array_equal(run.sample_ids, first.sample_ids) and np.array_equal(run.labels, first.labels) for run in runs
    )


def resampled_scores(
    runs: Mapping[int, Queries], metrics: Sequence[str], key: str, num_resamples: int = RESAMPLES
) -> dict[str, Floats]:
    """Return (B,) resampled means over seeds of every metric; `runs` are one method's, by seed, on one split.

    Equal keys, seeds and images give equal draws.
    """
    seeds = sorted(runs)
    size = len(runs[seeds[0]].labels)
    drawn = generator("compare seeds", key, *seeds).integers(len(seeds), size=(num_resamples, len(seeds)))
    found = {metric: np.zeros(drawn.shape) for metric in metrics}
    chunk = max(1, _CELLS // size)
    for slot in range(len(seeds)):
        for start in range(0, num_resamples, chunk):
            part = drawn[start : start + chunk, slot]
            counts = _counts(generator("compare images", key, slot, start), len(part), size)
            for number, seed in enumerate(seeds):
                which = np.flatnonzero(part == number)
                for metric, values in scores(runs[seed], counts[which], metrics).items():
                    found[metric][start + which, slot] = values
    for metric in set(metrics) & set(CLUSTERING):
        for number, seed in enumerate(seeds):
            of_run = found[metric][drawn == number]
            whole = scores(runs[seed], np.ones((1, size), dtype=np.int64), [metric])[metric][0]
            found[metric][drawn == number] = of_run - (of_run.mean() - whole) if of_run.size else of_run
    return {metric: values.mean(axis=1) for metric, values in found.items()}


def _counts(draws: np.random.Generator, number: int, size: int) -> Ints:
    """Return how often each image is in each resample, (b, N)."""
    rows = draws.integers(size, size=(number, size))
    rows += np.arange(number)[:, None] * size
    return np.bincount(rows.ravel(), minlength=number * size).reshape(number, size)


def scores(run: Queries, counts: Ints, metrics: Sequence[str]) -> dict[str, Floats]:
    """Return (b,) scores per metric of resamples that hold image i counts[., i] times; counts (b, N)."""
    clustering = _clustering(run, counts) if set(metrics) & set(CLUSTERING) else {}
    found = {}
    for metric in metrics:
        if metric in CLUSTERING:
            found[metric] = clustering[metric]
        elif metric == "macro_recall_at_1":
            found[metric] = _macro(run, counts)
        else:
            found[metric] = _mean(run.values[metric.replace("recall_at", "recall")], run.asked, counts)
    return found


def _mean(values: Floats, asked: npt.NDArray[np.bool_], counts: Ints) -> Floats:
    return (counts @ (values * asked)) / np.maximum(counts @ asked, 1)


def _macro(run: Queries, counts: Ints) -> Floats:
    """Mean over the classes that a resample has queries of."""
    order, starts = _runs_of(run.labels)
    asked = counts[:, order] * run.asked[order]
    numbers = np.add.reduceat(asked, starts, axis=1)
    right = np.add.reduceat(asked * run.values["nearest"][order], starts, axis=1)
    return (right / np.maximum(numbers, 1)).sum(axis=1) / np.maximum((numbers > 0).sum(axis=1), 1)


def _clustering(run: Queries, counts: Ints) -> dict[str, Floats]:
    """NMI (arithmetic mean of the entropies) and AMI, each the mean over the run's clusterings."""
    total = len(run.labels)
    sizes = np.arange(total + 1, dtype=np.float64)
    share = sizes / total
    terms = -share * np.log(np.where(sizes > 0, share, 1.0))  # what a group of c images adds to an entropy
    order, starts = _runs_of(run.labels)
    classes = terms[np.add.reduceat(counts[:, order], starts, axis=1)].sum(axis=1)
    nmi, ami = np.zeros(len(counts)), np.zeros(len(counts))
    for clusters, expected in zip(run.clusters, run.expected, strict=True):
        pairs = clusters * (int(run.labels.max()) + 1) + run.labels
        order, starts = _runs_of(pairs)
        of_pairs = np.add.reduceat(counts[:, order], starts, axis=1)
        _, of_clusters = _runs_of(clusters[order][starts])
        grouped = terms[np.add.reduceat(of_pairs, of_clusters, axis=1)].sum(axis=1)
        mutual = classes + grouped - terms[of_pairs].sum(axis=1)
        entropy = (classes + grouped) / 2
        nmi += mutual / np.maximum(entropy, 1e-12)
        ami += (mutual - expected) / np.maximum(entropy - expected, 1e-12)
    return {"nmi": nmi / len(run.clusters), "ami": ami / len(run.clusters)}


def _runs_of(keys: Ints) -> tuple[Ints, Ints]:
    """Return the order that sorts keys, and where each distinct one begins in it."""
    order = np.argsort(keys, kind="stable")
    return order, np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] - 1))
