"""Confusion of the nearest neighbour and the two maps."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix, recall_score

from launch.report import maps
from launch.report.collect import Arrays
from tests.launch.report.make_run import neighbours_of


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = load_digits()
    vectors, labels = data.data[:400].astype(np.float32), data.target[:400].astype(np.int64)
    return vectors, labels, neighbours_of(vectors, 10)[1]


def arrays_of(labels: np.ndarray, neighbours: np.ndarray, asked: np.ndarray | None = None) -> Arrays:
    nothing = np.zeros((len(labels), 1), np.float32)
    return Arrays(np.arange(len(labels)), labels, nothing, neighbours, nothing, None, asked)


def test_confusion_is_that_of_scikit_learn(digits: tuple[np.ndarray, ...]) -> None:
    _, labels, neighbours = digits
    found = maps.nearest_confusion(arrays_of(labels, neighbours))
    predicted = labels[neighbours[:, 0]]
    assert np.array_equal(found.counts, confusion_matrix(labels, predicted))
    assert found.rates.diagonal().mean() == pytest.approx(recall_score(labels, predicted, average="macro"))
    wrong = [(q, t, n) for q, t, n, _ in found.mistakes(1000)]
    assert sum(n for *_, n in wrong) == (labels != predicted).sum()
    assert [n for *_, n in wrong] == sorted((n for *_, n in wrong), reverse=True)
    assert all(q != t for q, t, _ in wrong)


def test_lone_queries_and_missing_neighbours_are_left_out() -> None:
    labels = np.array([3, 3, 5, 8, 8])
    neighbours = np.array([[1], [0], [0], [2], [-1]])
    found = maps.nearest_confusion(arrays_of(labels, neighbours))
    assert found.classes.tolist() == [3, 5, 8]
    assert found.counts.tolist() == [[2, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert np.isfinite(found.rates).all()


def test_queries_whose_class_is_left_out_of_their_gallery_are_left_out() -> None:
    labels, neighbours = np.array([3, 3, 5, 5]), np.array([[2], [2], [3], [2]])
    assert maps.nearest_confusion(arrays_of(labels, neighbours)).counts.tolist() == [[0, 2], [0, 2]]
    asked = np.array([False, False, True, True])
    assert maps.nearest_confusion(arrays_of(labels, neighbours, asked)).counts.tolist() == [[0, 0], [0, 2]]


def test_sample_rows_is_a_keyed_draw_without_replacement() -> None:
    rows = maps.sample_rows(5000, 2000, seed=1)
    assert len(np.unique(rows)) == 2000
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, maps.sample_rows(5000, 2000, seed=1))
    assert not np.array_equal(rows, maps.sample_rows(5000, 2000, seed=2))
    assert maps.sample_rows(5, 2000, seed=1).tolist() == [0, 1, 2, 3, 4]


def test_pca_map_agrees_with_the_singular_values(digits: tuple[np.ndarray, ...]) -> None:
    vectors = digits[0]
    points, share = maps.pca_map(vectors)
    singular = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False) ** 2
    assert share == pytest.approx(singular[:2] / singular.sum(), rel=1e-4)
    assert (points**2).sum(0) == pytest.approx(singular[:2], rel=1e-4)


def test_tsne_map_repeats_and_keeps_classes_together(digits: tuple[np.ndarray, ...]) -> None:
    vectors, labels, _ = digits
    points = maps.tsne_map(vectors[:150], seed=3)
    assert np.array_equal(points, maps.tsne_map(vectors[:150], seed=3))
    nearest = neighbours_of(points, 1)[1][:, 0]
    assert (labels[:150][nearest] == labels[:150]).mean() > 0.75


def test_a_class_has_its_name_only_where_it_gathers() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 50)
    points = rng.normal(size=(150, 2)) * 0.1
    points[:50] += 5
    place = maps.gathering_place(points, labels, 0)
    assert place is not None
    assert place == pytest.approx(np.median(points[:50], axis=0))
    assert maps.gathering_place(points, labels, 1) is None or maps.gathering_place(points, labels, 2) is None
    assert maps.gathering_place(points, labels, 9) is None


def test_short_names_keep_what_tells_them_apart() -> None:
    assert maps.short("melanocytic nevus") == "melanocytic nevus"
    names = {maps.short(f"Alphabet_of_the_Magi/character{n:02d}") for n in range(20)}
    assert len(names) == 20
    assert {len(name) for name in names} == {18}


def test_collapsed_vectors_have_no_map(digits: tuple[np.ndarray, ...]) -> None:
    assert maps.has_shape(digits[0])
    assert maps.has_shape(np.eye(3))
    line = np.linspace(0, 1, 50)[:, None] * np.array([[1.0, 2.0, 3.0]])
    for vectors in (np.ones((30, 4)), line, np.ones((30, 1)), np.full((5, 5), np.nan), np.eye(3)[:1]):
        assert not maps.has_shape(vectors)
