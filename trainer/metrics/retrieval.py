"""Retrieval: every query asks a gallery for its class; the gallery is all other queries, or a set of its own.

Recall@k is 1 if any of the first k neighbours has the class (CMC). R-precision and MAP@R look at the first R
neighbours, R being the number of relevant ones (Musgrave et al. 2020, https://arxiv.org/abs/2003.08505). A query with
no relevant item is dropped and counted, where the published code counts a miss. With groups (patients), items of the
query's own group are removed from its gallery; marking them wrong instead would punish what is right.

Legend: N queries, M items of the gallery, D embedding width, n queries of a chunk, R_i relevant items of query i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_shards.errors import UserError
from trainer.metrics.neighbours import Array, Bools, Ints, Ranking, Space

Floats = npt.NDArray[np.float64]
_OF_QUERIES = ("nearest", "nearest_row", "map_at_r", "r_precision")


def retrieval_scores(
    vectors: Array | torch.Tensor,
    labels: Array | torch.Tensor,
    *,
    groups: Array | None = None,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    chunk: int = 1024,
) -> dict[str, Any]:
    """Return {"recall": {"1": ...}, "macro_recall_at_1", "map_at_r", "r_precision", "num_lone_queries", "num_samples"}
    of leave-one-out.

    `vectors` (N, D) are compared by Euclidean distance, ties to the lower row; `labels` (N,); `groups` (N,), "" for
    none. Macro recall is the mean over classes. Memory is bounded whatever N is (shortlists.py), never N x N. Raises
    UserError if no query has anything to find.
    """
    classes = np.asarray(labels)
    found = query_scores(vectors, classes, groups=groups, recall_at=recall_at, chunk=chunk)
    asked = found["num_relevant"] > 0
    if not asked.any():
        raise UserError("No sample has another of its class to find; retrieval needs classes of at least two samples.")
    return mean_scores(found, classes, recall_at)


def mean_scores(found: dict[str, Floats], labels: Array, recall_at: Sequence[int] = (1, 2, 4, 8)) -> dict[str, Any]:
    """Return the scores of `retrieval_scores` from values of queries, of which one at least has something to find."""
    asked = found["num_relevant"] > 0
    values = {name: each[asked] for name, each in found.items()}
    return {
        "recall": {str(k): float(values[f"recall_{k}"].mean()) for k in recall_at},
        "macro_recall_at_1": _macro(values["nearest"], labels[asked]),
        "map_at_r": float(values["map_at_r"].mean()),
        "r_precision": float(values["r_precision"].mean()),
        "num_lone_queries": int((~asked).sum()),
        "num_samples": len(labels),
    }


def query_scores(
    vectors: Array | torch.Tensor,
    labels: Array | torch.Tensor,
    *,
    groups: Array | None = None,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    chunk: int = 1024,
) -> dict[str, Floats]:
    """Return what `ranked_scores` does for leave-one-out. Arguments are those of `retrieval_scores`."""
    classes = np.asarray(labels)
    return ranked_scores(Space(vectors, groups), classes, classes, recall_at, chunk)


def ranked_scores(
    ranking: Ranking,
    labels: Array,
    gallery_labels: Array,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    chunk: int = 1024,
) -> dict[str, Floats]:
    """Return (N,) values of every query, whose means over queries are the scores: "recall_K" of `recall_at`,
    "map_at_r", "r_precision", "nearest" (is the first neighbour right?), "nearest_row" (which is it? -1: there is none)
    and "num_relevant".

    `labels` (N,) of the queries, `gallery_labels` (M,). Values of lone queries, which have no relevant item, mean
    nothing.
    """
    sizes = (ranking.num_queries, ranking.num_items)
    if sizes != (len(labels), len(gallery_labels)):
        raise ValueError(f"{sizes[0]} and {sizes[1]} vectors but {len(labels)} and {len(gallery_labels)} labels")
    num_relevant = ranking.num_relevant(labels, gallery_labels)
    found = {name: np.zeros(len(labels)) for name in (*(f"recall_{k}" for k in recall_at), *_OF_QUERIES)}
    found["num_relevant"] = num_relevant.astype(np.float64)
    least = max(1, *recall_at)
    for queries in _alike(num_relevant):
        depth = min(ranking.num_items, max(least, int(num_relevant[queries].max())))
        for part in ranking.chunks(chunk, depth, queries):
            rows, _ = ranking.nearest(part, depth)
            hits = (gallery_labels[rows] == labels[part, None]) & (rows >= 0)
            for name, values in _chunk_scores(hits, num_relevant[part], recall_at).items():
                found[name][part] = values
            found["nearest_row"][part] = rows[:, 0]
    return found


def _alike(num_relevant: Ints) -> list[Ints]:
    """Return the queries (any,) in parts whose numbers of relevant items differ by a factor below 2."""
    bits = np.frexp(num_relevant)[1]
    return [np.flatnonzero(bits == each) for each in np.unique(bits)]


def _chunk_scores(hits: Bools, num_relevant: Ints, recall_at: Sequence[int]) -> dict[str, Floats]:
    """Return (n,) values per query of a chunk, from (n, k) which of the first are relevant."""
    rank = np.arange(1, hits.shape[1] + 1)
    counted = hits & (rank <= num_relevant[:, None])
    precision = counted.cumsum(axis=1) / rank
    divisor = np.maximum(num_relevant, 1)
    return {
        **{f"recall_{k}": hits[:, :k].any(axis=1).astype(np.float64) for k in recall_at},
        "nearest": hits[:, 0].astype(np.float64),
        "map_at_r": (precision * counted).sum(axis=1) / divisor,
        "r_precision": counted.sum(axis=1) / divisor,
    }


def _macro(values: Floats, classes: Array) -> float:
    """Return the mean over classes of the mean over their queries."""
    _, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return float((np.bincount(codes.reshape(-1), weights=values) / counts).mean())
