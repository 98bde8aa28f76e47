"""Scores of Kimia Path24: is a patch matched to the scan it was cut from?

Babaie et al. 2017, "Classification and Retrieval of Digital Pathology Scans", https://arxiv.org/abs/1705.07522:

    eta_p     = sum over scans of right patches / number of patches           (patch-to-scan accuracy)
    eta_W     = mean over scans of right patches / patches of the scan        (whole-scan accuracy: mean recall)
    eta_total = eta_p x eta_W

The benchmark's MATLAB script computes these. Its Python script divides by how often a scan was predicted instead, which
is a mean precision, and fails for a scan that never was; it is here under its own name, with 0 for such a scan.

Legend: N patches, S scans.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def scan_scores(truth: Array, predicted: Array) -> dict[str, float]:
    """Return the scores of (N,) true and predicted scans: "eta_p", "eta_w", "eta_total", "eta_w_precision",
    "eta_total_precision".

    Means are over the scans that patches come from. What is no such scan (another number, -1) is a wrong prediction.
    """
    return confusion_scores(confusion(truth, predicted))


def confusion(truth: Array, predicted: Array) -> npt.NDArray[np.int64]:
    """Return counts (S, S + 1) of the scans in `truth`, ascending: row = true, column = predicted, last = no such."""
    scans, rows = np.unique(truth, return_inverse=True)
    columns = np.searchsorted(scans, predicted)
    known = scans[np.minimum(columns, len(scans) - 1)] == predicted
    counts = np.zeros((len(scans), len(scans) + 1), dtype=np.int64)
    np.add.at(counts, (rows.reshape(-1), np.where(known, columns, len(scans))), 1)
    return counts


def confusion_scores(counts: Array) -> dict[str, float]:
    """Return the scores of `scan_scores` from counts (S, S or more): row = true scan, of which each has patches."""
    right, patches = np.diagonal(counts).tolist(), counts.sum(axis=1).tolist()
    found = counts[:, : len(counts)].sum(axis=0).tolist()
    eta_p = Fraction(sum(right), sum(patches))
    eta_w = _mean(right, patches)
    precision = _mean(right, [max(each, 1) for each in found])
    return {
        "eta_p": float(eta_p),
        "eta_w": float(eta_w),
        "eta_total": float(eta_p * eta_w),
        "eta_w_precision": float(precision),
        "eta_total_precision": float(eta_p * precision),
    }


def _mean(parts: list[int], wholes: list[int]) -> Fraction:
    """Return the mean of parts / wholes, exactly: the order of summation would show in the last digit."""
    return sum((Fraction(part, whole) for part, whole in zip(parts, wholes, strict=True)), Fraction()) / len(parts)
