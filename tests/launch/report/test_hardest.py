"""The worst classes, on a matrix written by hand."""

from __future__ import annotations

import numpy as np

from launch.report.collect import Evaluation
from launch.report.hardest import hardest_rows
from launch.report.maps import Confusion


def test_worst_classes_first_and_perfect_ones_not_at_all() -> None:
    counts = np.array([[8, 0, 2, 0], [0, 5, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]])
    names = {"class_names": ["a", "b", "c", "d", "e"]}
    rows = hardest_rows(Evaluation("test", names, None), Confusion(np.array([0, 1, 2, 4]), counts))
    assert [(r["name"], r["queries"], r["recall"], r["taken"], r["times"]) for r in rows] == [
        ("c", "4", "0.000", "a", "3"),
        ("a", "10", "0.800", "c", "2"),
    ]
