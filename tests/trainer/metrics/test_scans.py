"""Scores of scans: a published confusion matrix to the last digit, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_score, recall_score

from trainer.metrics.scans import confusion, confusion_scores, scan_scores

# The confusion matrix of 1,325 test patches that a released model of mixed attention (SE-ResNet50) came with.
PATCHES = [65, 65, 65, 75, 15, 40, 70, 50, 60, 60, 70, 70, 70, 60, 60, 30, 45, 45, 25, 25, 65, 65, 65, 65]
ERRORS = {
    **{(0, 1): 1, (4, 7): 1, (4, 12): 1, (4, 16): 2, (5, 6): 1, (6, 2): 1, (6, 5): 1, (6, 7): 1, (6, 16): 1, (7, 5): 1},
    **{(8, 21): 2, (11, 17): 4, (15, 20): 1, (16, 4): 2, (16, 11): 1, (17, 11): 2, (18, 15): 1, (20, 18): 1},
    **{(21, 8): 1, (23, 5): 1, (23, 7): 1},
}


def published() -> np.ndarray:
    counts = np.diag(PATCHES)
    for (true, predicted), count in ERRORS.items():
        counts[true, predicted] += count
        counts[true, true] -= count
    return counts


def test_the_published_confusion_matrix_gives_the_published_scores() -> None:
    found = confusion_scores(published())
    assert found["eta_p"] == 0.9788679245283018
    assert found["eta_w"] == 0.9699727818477818
    assert found["eta_total"] == 0.9494752438162816
    assert round(100 * found["eta_w_precision"], 3) == 97.194
    assert round(100 * found["eta_total_precision"], 3) == 95.140


def test_pairs_of_scans_give_the_same_as_their_confusion_matrix() -> None:
    truth, predicted = (np.repeat(each.reshape(-1), published().reshape(-1)) for each in np.indices((24, 24)))
    assert np.array_equal(confusion(truth, predicted)[:, :24], published())
    assert scan_scores(truth, predicted) == confusion_scores(published())


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 6)), min_size=1, max_size=40))
def test_equal_scikit_learn_also_for_scans_that_are_never_predicted(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(pairs).T
    found, scans = scan_scores(truth, predicted), np.unique(truth)
    keywords = {"labels": scans, "average": "macro", "zero_division": 0}
    assert found["eta_p"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["eta_w"] == pytest.approx(recall_score(truth, predicted, **keywords))
    assert found["eta_w_precision"] == pytest.approx(precision_score(truth, predicted, **keywords))
    assert found["eta_total"] == pytest.approx(found["eta_p"] * found["eta_w"])
