"""Kept features against a slow loop, for any number of ranks, and across a checkpoint that another number reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data_shards.samplers import batch_slice
from tests.ranks import run_on_ranks
from trainer import distributed
from trainer.recycling import Recycled

S, B, F, STEPS, MAX_AGE = 40, 12, 4, 3, 2


def batch(epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (B,), some twice, and features (B, F) that tell the visit."""
    rows = np.random.default_rng([epoch, step]).integers(0, S, B)
    places = np.arange(B)
    return rows, np.stack([np.full(B, epoch), np.full(B, step), places, rows], axis=1).astype(np.float32)


def by_slow_loop(num_epochs: int) -> dict[int, list[float]]:
    """Return what counts at the start of epoch `num_epochs`, by row."""
    found: dict[int, tuple[int, list[float]]] = {}
    for epoch in range(num_epochs):
        for step in range(STEPS):
            rows, features = batch(epoch, step)
            for row, feature in zip(rows.tolist(), features.tolist(), strict=True):
                found[row] = (epoch, feature)
    return {row: feature for row, (epoch, feature) in found.items() if epoch >= num_epochs - MAX_AGE}


def train(kept: Recycled, epochs: range, ask: bool = False) -> None:
    slices = [batch_slice(B, 6, rank, distributed.world_size()) for rank in range(distributed.world_size())]
    start, stop = slices[distributed.rank()]
    for epoch in epochs:
        for step in range(STEPS):
            rows, features = batch(epoch, step)
            own = torch.from_numpy(features[start:stop])
            kept.note(epoch, rows[start:stop], [b - a for a, b in slices], own)
            if ask:
                kept.tensors()  # a checkpoint in the middle of an epoch


def held(kept: Recycled, epoch: int) -> dict[str, Any]:
    rows, features = kept.take(epoch)
    tensors = {name: value.numpy() for name, value in kept.tensors().items()}
    return {
        "rows": rows,
        "features": features.float().numpy(),
        "missing": kept.missing(epoch).tolist(),
        "tensors": tensors,
    }


def walk(num_epochs: int, ask: bool) -> dict[str, Any]:
    kept = Recycled(S, F, MAX_AGE)
    train(kept, range(num_epochs), ask)
    return held(kept, num_epochs)


def go_on(tensors: dict[str, np.ndarray], epochs: range) -> dict[str, Any]:
    kept = Recycled(S, F, MAX_AGE)
    kept.load_tensors({name: torch.from_numpy(value) for name, value in tensors.items()})
    train(kept, epochs)
    return held(kept, epochs.stop)


def check(found: list[dict[str, Any]], num_epochs: int) -> None:
    expected = by_slow_loop(num_epochs)
    rows = np.concatenate([each["rows"] for each in found])
    assert sorted(rows.tolist()) == sorted(expected)  # each row on one rank
    features = np.concatenate([each["features"] for each in found])
    assert dict(zip(rows.tolist(), features.tolist(), strict=True)) == expected
    for each in found:
        assert each["rows"].tolist() == sorted(each["rows"].tolist())
        assert each["missing"] == sorted(set(range(S)) - set(expected))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_last_visits_of_any_number_of_ranks(world_size: int) -> None:
    for num_epochs in (0, 1, 4):
        check(run_on_ranks(walk, world_size, num_epochs, world_size == 2), num_epochs)


def test_a_checkpoint_is_the_same_for_any_number_of_ranks_and_goes_on_with_another() -> None:
    saved = {world_size: run_on_ranks(walk, world_size, 2, False)[0]["tensors"] for world_size in (1, 3)}
    assert {name: value.tobytes() for name, value in saved[1].items()} == {
        name: value.tobytes() for name, value in saved[3].items()
    }
    check(run_on_ranks(go_on, 2, saved[3], range(2, 4)), 4)


def test_nothing_is_left_of_weights_that_are_gone() -> None:
    assert run_on_ranks(forgotten, 1) == [(0, S)]


def forgotten() -> tuple[int, int]:
    kept = Recycled(S, F, MAX_AGE)
    train(kept, range(1))
    kept.forget()
    return len(kept.take(1)[0]), len(kept.missing(1))
