"""Retrieval scores against pytorch-metric-learning and a slow loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from data_shards.errors import UserError
from trainer.metrics.neighbours import Space
from trainer.metrics.retrieval import mean_scores, query_scores, ranked_scores, retrieval_scores


def sample(size: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, size)
    vectors = rng.standard_normal((size, 6)) + rng.standard_normal((num_classes, 6))[labels]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def by_brute_force(query: Any, k: int, reference: Any, ref_includes_query: bool) -> tuple[Any, Any]:
    """A knn_func for the calculator: float64 distances, self removed."""
    distances = torch.cdist(query.double(), reference.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if ref_includes_query:
        distances.fill_diagonal_(torch.inf)
    return torch.sort(distances, dim=1, stable=True).values[:, :k], distances.argsort(dim=1, stable=True)[:, :k]


def slow_rows(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> list[dict[str, float]]:
    """Return what each query that has something to find gets, by its definition."""
    size, wide = len(labels), vectors.astype(np.float64)
    rows: list[dict[str, float]] = []
    for i in range(size):
        kept = [j for j in range(size) if j != i and (groups is None or groups[i] == "" or groups[j] != groups[i])]
        order = sorted(kept, key=lambda j: (np.sum((wide[i] - wide[j]) ** 2), j))
        relevant = sum(labels[j] == labels[i] for j in kept)
        if not relevant:
            continue
        hits = [labels[j] == labels[i] for j in order]
        precision = [sum(hits[: r + 1]) / (r + 1) * hits[r] for r in range(relevant)]
        row = {str(k): float(any(hits[:k])) for k in (1, 2, 4, 8)}
        row |= {"query": i, "label": labels[i], "map": sum(precision) / relevant, "rp": sum(hits[:relevant]) / relevant}
        rows.append(row)
    return rows


def slow_scores(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> dict[str, Any]:
    size, rows = len(labels), slow_rows(vectors, labels, groups)
    per_class = [np.mean([row["1"] for row in rows if row["label"] == c]) for c in {row["label"] for row in rows}]
    return {
        "recall": {k: np.mean([row[k] for row in rows]) for k in ("1", "2", "4", "8")},
        "macro_recall_at_1": np.mean(per_class),
        "map_at_r": np.mean([row["map"] for row in rows]),
        "r_precision": np.mean([row["rp"] for row in rows]),
        "num_lone_queries": size - len(rows),
        "num_samples": size,
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert found["recall"] == pytest.approx(expected["recall"])
    for name in expected.keys() - {"recall"}:
        assert found[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize(("size", "num_classes"), [(120, 3), (90, 40)])
def test_equal_pytorch_metric_learning(size: int, num_classes: int) -> None:
    vectors, labels = sample(size, num_classes, seed=size)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
        knn_func=by_brute_force,
        kmeans_func=by_brute_force,
        device=torch.device("cpu"),
    )
    expected = calculator.get_accuracy(vectors, labels)
    found = retrieval_scores(vectors, labels)
    assert found["recall"]["1"] == pytest.approx(expected["precision_at_1"], abs=1e-12)
    assert found["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-12)
    assert found["r_precision"] == pytest.approx(expected["r_precision"], abs=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_equal_a_slow_loop_with_lone_queries_and_groups(grouped: bool) -> None:
    vectors, labels = sample(60, 25, seed=4)
    groups = np.random.default_rng(5).choice(["", "p", "q", "r"], 60) if grouped else None
    expected = slow_scores(vectors, labels, groups)
    assert expected["num_lone_queries"] > 0
    assert_same(retrieval_scores(vectors, labels, groups=groups), expected)


def test_a_patient_whose_images_are_its_class_has_nothing_to_find() -> None:
    vectors, _ = sample(5, 1, seed=0)
    labels, groups = np.array([0, 0, 1, 1, 1]), np.array(["a", "a", "b", "c", "c"])
    found = retrieval_scores(vectors, labels, groups=groups)
    assert found["num_lone_queries"] == 2
    with pytest.raises(UserError, match="at least two"):
        retrieval_scores(vectors[:2], labels[:2], groups=groups[:2])


def test_the_chunk_changes_nothing_and_duplicates_are_ordered() -> None:
    vectors, labels = sample(200, 5, seed=2)
    vectors[50:100] = vectors[:50]
    whole = retrieval_scores(vectors, labels)
    assert all(retrieval_scores(torch.from_numpy(vectors), labels, chunk=chunk) == whole for chunk in (1, 17, 64))
    assert_same(whole, slow_scores(vectors, labels, None))


def test_values_of_queries_are_those_of_a_slow_loop() -> None:
    vectors, labels = sample(60, 12, seed=5)
    groups = np.array([f"patient{i % 20}" for i in range(60)])
    found, rows = query_scores(vectors, labels, groups=groups, chunk=7), slow_rows(vectors, labels, groups)
    assert np.flatnonzero(found["num_relevant"]).tolist() == [row["query"] for row in rows]
    names = {"recall_1": "1", "recall_8": "8", "nearest": "1", "map_at_r": "map", "r_precision": "rp"}
    for ours, theirs in names.items():
        for row in rows:
            assert found[ours][int(row["query"])] == pytest.approx(row[theirs]), ours
    assert query_scores(np.zeros((0, 3)), np.zeros(0))["num_relevant"].shape == (0,)


def test_another_gallery_equals_pytorch_metric_learning() -> None:
    vectors, labels = sample(150, 4, seed=6)
    queries, gallery = slice(0, 40), slice(40, 150)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
        knn_func=by_brute_force,
        kmeans_func=by_brute_force,
        device=torch.device("cpu"),
    )
    expected = calculator.get_accuracy(vectors[queries], labels[queries], vectors[gallery], labels[gallery])
    space = Space(vectors[queries], gallery=vectors[gallery])
    each = ranked_scores(space, labels[queries], labels[gallery], chunk=7)
    found = mean_scores(each, labels[queries])
    assert found["recall"]["1"] == pytest.approx(expected["precision_at_1"], abs=1e-12)
    assert found["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-12)
    assert found["r_precision"] == pytest.approx(expected["r_precision"], abs=1e-12)
    first = labels[gallery][each["nearest_row"].astype(int)]
    assert np.array_equal(first == labels[queries], each["nearest"] == 1)


def test_labels_fit_their_sides() -> None:
    with pytest.raises(ValueError, match="3 and 2 vectors but 3 and 3 labels"):
        ranked_scores(Space(np.eye(3), gallery=np.eye(3)[:2]), np.arange(3), np.arange(3))
