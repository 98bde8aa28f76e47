"""Dice, IoU and the sweep against MONAI and slow loops; what empty masks mean; summaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.segmentation.scores import best_threshold, joined, overlap, summary, sweep


@pytest.fixture
def masks() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    share = rng.random((40, 1, 1))
    return rng.random((40, 9, 9)) < share, rng.random((40, 9, 9)) < rng.permutation(share)


def test_dice_and_iou_are_monais(masks: tuple[np.ndarray, np.ndarray]) -> None:
    from monai.metrics import compute_dice, compute_iou

    predicted, true = masks
    found = overlap(predicted, true)
    tensors = (torch.from_numpy(m[:, None].astype(np.float32)) for m in masks)
    p, t = tensors
    np.testing.assert_allclose(found.dice, compute_dice(p, t, ignore_empty=False)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found.iou, compute_iou(p, t, ignore_empty=False)[:, 0], rtol=1e-6)


def test_empty_masks() -> None:
    nothing, one, other = np.zeros((3, 1, 4, 4), dtype=bool)
    one[0, 1, 1] = other[0, 2, 2] = True
    for predicted, true, expected in ((nothing, nothing, 1), (nothing, one, 0), (one, nothing, 0), (one, one, 1)):
        found = overlap(predicted, true)
        assert found.dice.tolist() == found.iou.tolist() == [expected]
    assert overlap(one, other).dice.tolist() == [0]


@pytest.mark.parametrize("kind", ["smooth", "levels", "flat"])
def test_the_sweep_is_the_slow_loop(kind: str, masks: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((40, 9, 9)).astype(np.float32)
    maps = {"smooth": maps, "levels": np.round(maps * 10) / np.float32(10), "flat": np.full_like(maps, 0.4)}[kind]
    thresholds = np.linspace(0, 1, 11).astype(np.float32)  # those of "levels" fall on them
    true = masks[1]
    found = sweep(maps, true, thresholds)
    assert found.dice.shape == (11, 40)
    slow = np.array(
        [[overlap((m >= t)[None], y[None]).dice[0] for m, y in zip(maps, true, strict=True)] for t in thresholds]
    )
    assert np.array_equal(found.dice, slow)
    threshold, dice = best_threshold(thresholds, found)
    assert dice == pytest.approx(max(slow.mean(axis=1)))
    assert threshold == next(float(t) for t, row in zip(thresholds, slow, strict=True) if row.mean() == dice)
    parts = joined([sweep(maps[a:b], true[a:b], thresholds) for a, b in ((0, 7), (7, 8), (8, 40))])
    assert np.array_equal(parts.dice, found.dice)
    assert np.array_equal(parts.iou, found.iou)


def test_summary() -> None:
    values = np.random.default_rng(1).beta(5, 2, 120)
    found = summary(values, 0, "dice")
    assert (found["mean"], found["std"], found["median"]) == pytest.approx(
        (values.mean(), values.std(), np.median(values))
    )
    low, high = found["ci95"]
    error = values.std() / len(values) ** 0.5
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)
    assert found == summary(values, 0, "dice")
    assert found["ci95"] != summary(values, 1, "dice")["ci95"]
    assert summary(np.array([0.25]), 0, "dice") == {"mean": 0.25, "std": 0.0, "median": 0.25, "ci95": [0.25, 0.25]}
