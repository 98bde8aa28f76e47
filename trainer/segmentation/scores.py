"""Dice and IoU per image, the sweep that chooses a threshold, and what N images say together.

    Dice = 2 |P and T| / (|P| + |T|)        IoU = |P and T| / |P or T|

Both are 1 where prediction and truth are empty, and 0 where only one of them is. (MONAI's DiceMetric leaves images of
empty truth out of its mean by default; here an image that is scored is in every mean.)

Legend: N images, T thresholds, S x S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_shards import keyed

Floats = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Overlap:
    """Pixels per image, any leading shape (..., N): in both masks, in the prediction, in the truth."""

    common: Counts
    predicted: Counts
    true: Counts

    @property
    def dice(self) -> Floats:
        """(..., N) in [0, 1]."""
        return _ratio(2 * self.common, self.predicted + self.true)

    @property
    def iou(self) -> Floats:
        """(..., N) in [0, 1]."""
        return _ratio(self.common, self.predicted + self.true - self.common)


def _ratio(numerator: Counts, denominator: Counts) -> Floats:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 1.0)


def overlap(predicted: Bools, true: Bools) -> Overlap:
    """Count (N, S, S) predictions against (N, S, S) truths."""
    counts = ((mask.sum(axis=(1, 2), dtype=np.int64)) for mask in (predicted & true, predicted, true))
    return Overlap(*counts)


def joined(parts: list[Overlap]) -> Overlap:
    """Return the overlaps of all images of several blocks, in order."""
    return Overlap(*(np.concatenate([getattr(p, f) for p in parts], -1) for f in ("common", "predicted", "true")))


def sweep(maps: Floats, true: Bools, thresholds: Floats) -> Overlap:
    """Count `maps >= threshold` for ascending thresholds (T,): (N, S, S) maps -> an overlap of shape (T, N).

    Every pixel is sorted between two thresholds once, so that the cost does not grow with T. Maps and thresholds are
    compared in the type of the maps, as `maps >= threshold` compares.
    """
    num_images, num_bins = len(maps), len(thresholds) + 1
    passed = np.searchsorted(thresholds.astype(maps.dtype), maps.reshape(num_images, -1), side="right")
    bins = passed + num_bins * np.arange(num_images)[:, None]
    inside = true.reshape(num_images, -1)
    predicted, common = (_passed_at_least(b, num_images, num_bins) for b in (bins.ravel(), bins[inside]))
    truth = np.broadcast_to(inside.sum(axis=1, dtype=np.int64), predicted.shape)
    return Overlap(common, predicted, truth)


def _passed_at_least(bins: Counts, num_images: int, num_bins: int) -> Counts:
    """Return (T, N): how many pixels of an image passed threshold t, from the bin of every pixel."""
    counts = np.bincount(bins, minlength=num_images * num_bins).reshape(num_images, num_bins)
    return np.ascontiguousarray(counts[:, ::-1].cumsum(axis=1)[:, -2::-1].T)


def best_threshold(thresholds: Floats, swept: Overlap) -> tuple[float, float]:
    """Return the threshold of the best mean Dice over the images, the lowest of equals, and that mean."""
    means = swept.dice.mean(axis=-1)
    best = int(means.argmax())
    return float(thresholds[best]), float(means[best])


def summary(values: Floats, seed: int, purpose: str) -> dict[str, Any]:
    """Return mean, standard deviation over images, median and the bootstrap 95 % interval of the mean of (N,).

    The interval is that of Efron's percentiles (Efron 1979, https://doi.org/10.1214/aos/1176344552) over
    resampled images; equal seed and N give the same resamples, so that methods are compared on the same ones.
    """
    chosen = keyed.generator(seed, "bootstrap", purpose, len(values)).integers(
        0, len(values), (NUM_RESAMPLES, len(values))
    )
    low, high = np.percentile(values[chosen].mean(axis=1), (2.5, 97.5))
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "median": float(np.median(values)),
        "ci95": [float(low), float(high)],
    }
