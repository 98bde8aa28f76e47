"""Every protocol says which it is, and has the scores that its parts give alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.metrics.test_retrieval import sample
from trainer.metrics.neighbours import Space
from trainer.metrics.protocols import Items, Protocols, protocol_scores
from trainer.metrics.reranking import KReciprocal, QueryExpansion
from trainer.metrics.retrieval import mean_scores, ranked_scores, retrieval_scores
from trainer.metrics.scans import scan_scores

BOTH = ("leave_one_out", "train")
NAME = "query_expansion"


def two_sets() -> tuple[Items, Items]:
    vectors, labels = sample(150, 5, seed=1)
    groups = np.array([f"patient{i % 30}" for i in range(150)])
    return Items(vectors[:50], labels[:50], groups[:50]), Items(vectors[50:], labels[50:], groups[50:])


def test_plain_leave_one_out_is_what_a_split_is_scored_by() -> None:
    queries, _ = two_sets()
    (found,) = protocol_scores(queries, {}, Protocols())
    label = {"gallery": "leave_one_out", "num_gallery": 50, "rerank": "none", "rerank_arguments": {}}
    assert found == {**label, **retrieval_scores(queries.vectors, queries.labels, groups=queries.groups)}


def test_both_galleries_and_both_orders() -> None:
    queries, train = two_sets()
    rule = QueryExpansion(k=3)
    found = list(protocol_scores(queries, {"train": train}, Protocols(BOTH, (NAME, rule))))
    assert [(each["gallery"], each["rerank"]) for each in found] == [(g, r) for g in BOTH for r in ("none", NAME)]
    assert found[3]["rerank_arguments"] == {"k": 3, "alpha": 3.0}
    space = Space(queries.vectors, queries.groups, train.vectors, train.groups)
    for each, ranking in ((found[2], space), (found[3], rule(space))):
        expected = mean_scores(ranked_scores(ranking, queries.labels, train.labels), queries.labels)
        assert {name: each[name] for name in expected} == expected
        assert each["num_gallery"] == 100
    assert found[2]["recall"] != found[0]["recall"]


def test_scans_are_those_of_the_first_neighbour_in_the_order_that_is_scored() -> None:
    queries, train = two_sets()
    protocols = Protocols(("train",), ("k_reciprocal", KReciprocal(8, 3, 0.2)), scans=True)
    found = list(protocol_scores(queries, {"train": train}, protocols))
    space = Space(queries.vectors, queries.groups, train.vectors, train.groups)
    for each, ranking in zip(found, (space, KReciprocal(8, 3, 0.2)(space)), strict=True):
        (part,) = ranking.chunks(1000, 1)
        first = train.labels[ranking.nearest(part, 1)[0][:, 0]]
        assert each["scans"] == scan_scores(queries.labels, first)
        assert each["scans"]["eta_p"] == pytest.approx(each["recall"]["1"])
        assert each["scans"]["eta_w"] == pytest.approx(each["macro_recall_at_1"])


def test_a_gallery_without_any_class_of_the_queries_has_counts_only() -> None:
    queries, train = two_sets()
    (found,) = protocol_scores(
        queries, {"train": Items(train.vectors, train.labels + 9, train.groups)}, Protocols(("train",))
    )
    assert found["num_lone_queries"] == 50
    assert "recall" not in found
