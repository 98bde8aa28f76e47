"""Scores under every protocol that is asked for: in which gallery, and re-ranked or not. Each says which it is of.

Legend: N queries, M items of the gallery, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer.metrics.neighbours import Array, Ranking, Space
from trainer.metrics.reranking import Reranking
from trainer.metrics.retrieval import mean_scores, ranked_scores
from trainer.metrics.scans import scan_scores


@dataclass(frozen=True)
class Items:
    """Embedded images: vectors (N, D), labels (N,), and group names (N,) if those of a group are left out."""

    vectors: Array
    labels: Array
    groups: Array | None = None


@dataclass(frozen=True)
class Protocols:
    """What is scored.

    Args:
        galleries: the names of the galleries to search in: "leave_one_out" (the other queries), or a set that is given.
        reranking: a second order to score, beside the plain one: its name, and how it is made.
        scans: also give the scores of scans, for data whose classes are the scans that patches were cut from.
    """

    galleries: tuple[str, ...] = ("leave_one_out",)
    reranking: tuple[str, Reranking] | None = None
    scans: bool = False


def protocol_scores(queries: Items, others: Mapping[str, Items], protocols: Protocols) -> Iterator[dict[str, Any]]:
    """Yield the scores of `mean_scores` under each protocol, with "gallery", "num_gallery" and "rerank" that name it,
    "rerank_arguments", and "scans" on request.

    `others` are the galleries that are not the queries. Where no query has anything to find, there are counts only.
    """
    for name in protocols.galleries:
        gallery = queries if name == "leave_one_out" else others[name]
        space = Space(queries.vectors, queries.groups, *_foreign(queries, gallery))
        rankings: list[tuple[str, dict[str, Any], Ranking]] = [("none", {}, space)]
        if protocols.reranking is not None:
            rerank, make = protocols.reranking
            rankings.append((rerank, asdict(make), make(space)))
        for rerank, arguments, ranking in rankings:
            label = {"gallery": name, "num_gallery": space.num_items, "rerank": rerank, "rerank_arguments": arguments}
            yield {**label, **_scores(ranking, queries.labels, gallery.labels, protocols.scans)}


def _foreign(queries: Items, gallery: Items) -> tuple[Array | None, Array | None]:
    return (None, None) if gallery is queries else (gallery.vectors, gallery.groups)


def _scores(ranking: Ranking, labels: Array, gallery_labels: Array, scans: bool) -> dict[str, Any]:
    found = ranked_scores(ranking, labels, gallery_labels)
    asked = found["num_relevant"] > 0
    if not asked.any():
        return {"num_samples": len(labels), "num_lone_queries": len(labels)}
    scores = mean_scores(found, labels)
    if scans:
        nearest = gallery_labels[found["nearest_row"][asked].astype(int)]
        scores["scans"] = scan_scores(labels[asked], nearest)
    return scores
