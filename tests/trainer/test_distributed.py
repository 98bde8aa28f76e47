"""Collectives on real gloo ranks, against what one process would hold."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import nn

from tests.ranks import run_on_ranks
from trainer import distributed


def _gathers() -> tuple[list, list, list, object, bool]:
    rank = distributed.rank()
    even = distributed.gather_rows(torch.tensor([[float(rank), 1.0], [float(rank), 2.0]]))
    uneven = distributed.gather_uneven_rows(torch.full((3 * rank, 2), float(rank)))
    arrays = distributed.gather_arrays(np.arange(rank + 2, dtype=np.int64) + 10 * rank)
    told = distributed.broadcast_json({"from": rank, "text": "ü", "none": None})
    return even.tolist(), uneven.tolist(), [a.tolist() for a in arrays], told, distributed.any_rank(rank == 1)


def test_gathers_keep_rank_order_and_agree() -> None:
    first, second = run_on_ranks(_gathers, 2)
    assert first == second
    even, uneven, arrays, told, any_rank = first
    assert even == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert uneven == [[1, 1]] * 3
    assert arrays == [[0, 1], [10, 11, 12]]
    assert told == {"from": 0, "text": "ü", "none": None}
    assert any_rank is True


def _sync_norm(images: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    share = len(images) // distributed.world_size()
    rows = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    norm = distributed.SynchronisedBatchNorm2d(images.shape[1])
    x = torch.from_numpy(images[rows]).requires_grad_()
    y = norm(x)
    (y * torch.from_numpy(weights[rows])).sum().backward()
    assert norm.running_var is not None and norm.weight.grad is not None and x.grad is not None
    return y.detach().numpy(), x.grad.numpy(), norm.weight.grad.numpy(), norm.running_var.numpy()


@pytest.mark.parametrize("world_size", [1, 2])
def test_synchronised_batch_norm_is_batch_norm_of_the_global_batch(world_size: int) -> None:
    rng = np.random.default_rng(0)
    images = (rng.normal(size=(8, 3, 5, 4)) * 2 + 1).astype(np.float32)
    weights = rng.normal(size=images.shape).astype(np.float32)
    found = run_on_ranks(_sync_norm, world_size, images, weights)

    oracle = nn.BatchNorm2d(3)
    x = torch.from_numpy(images).requires_grad_()
    y = oracle(x)
    (y * torch.from_numpy(weights)).sum().backward()
    assert x.grad is not None and oracle.weight.grad is not None and oracle.running_var is not None
    np.testing.assert_allclose(np.concatenate([f[0] for f in found]), y.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([f[1] for f in found]), x.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(sum(f[2] for f in found), oracle.weight.grad.numpy(), rtol=1e-4, atol=1e-4)
    for f in found:
        np.testing.assert_allclose(f[3], oracle.running_var.numpy(), rtol=1e-5)


def test_a_group_of_one_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    distributed.initialise(60)
    try:
        assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
        assert dict(os.environ) == before
        assert distributed.gather_rows(torch.ones(2, 3)).shape == (2, 3)
        assert distributed.node_addresses() == (None, None)
    finally:
        distributed.shut_down()


def _stage_error(text: str) -> str:
    try:
        with distributed.stage("the gather"):
            raise RuntimeError(text)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


def test_a_lost_peer_is_named_with_the_stage_and_other_errors_pass() -> None:
    (lost,) = run_on_ranks(_stage_error, 1, "[gloo] Connection closed by peer")
    assert lost.startswith("CollectiveTimeout: rank 0 lost its peers during the gather")
    (other,) = run_on_ranks(_stage_error, 1, "shape mismatch")
    assert other == "RuntimeError: shape mismatch"
