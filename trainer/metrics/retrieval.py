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
from trainer.metrics.neighbours import Array, Bools, Ranking, Space

Floats = npt.NDArray[np.float64]


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
    none. Macro recall is the mean over classes. Memory is chunk x N, never N x N. Raises UserError if no query has
    anything to find.
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
    parts = [
        _chunk_scores(ranking, labels, gallery_labels, part, removed, tuple(recall_at))
        for part, removed in ranking.chunks(chunk)
    ]
    if not parts:
        return {"num_relevant": np.zeros(0)}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chunk_scores(
    ranking: Ranking, labels: Array, gallery_labels: Array, part: slice, removed: Bools, recall_at: tuple[int, ...]
) -> dict[str, Floats]:
    """Return (n,) values per query of a chunk; those of lone queries mean nothing."""
    relevant = (labels[part, None] == gallery_labels[None, :]) & ~removed
    num_relevant = relevant.sum(axis=1)
    depth = min(ranking.num_items, max(1, *recall_at, int(num_relevant.max(initial=0))))
    rows, _ = ranking.nearest(part, removed, depth)
    hits = (gallery_labels[rows] == labels[part, None]) & (rows >= 0)
    rank = np.arange(1, depth + 1)
    counted = hits & (rank <= num_relevant[:, None])
    precision = counted.cumsum(axis=1) / rank
    divisor = np.maximum(num_relevant, 1)
    found = {f"recall_{k}": hits[:, :k].any(axis=1).astype(np.float64) for k in recall_at}
    return {
        **found,
        "nearest": hits[:, 0].astype(np.float64),
        "nearest_row": rows[:, 0].astype(np.float64),
        "map_at_r": (precision * counted).sum(axis=1) / divisor,
        "r_precision": counted.sum(axis=1) / divisor,
        "num_relevant": num_relevant.astype(np.float64),
    }


def _macro(values: Floats, classes: Array) -> float:
    """Return the mean over classes of the mean over their queries."""
    _, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return float((np.bincount(codes.reshape(-1), weights=values) / counts).mean())
