"""Growth on tensors: rows move by one gathered permutation, optimiser moments move with them, new rows start afresh.

The released code copies rows one by one in place and loses selected rows whenever a slot is overwritten before it is
read; it also leaves every Adam moment where it was, so that moved rows inherit the moments of strangers.

Legend: D rows (embedding dimensions), F inputs. `permutation` (D,) gives for every new slot the old slot it takes.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch

Rows = Sequence[int] | torch.Tensor
# What the optimisers of torch keep per row; anything else of that shape is an error rather than a silent stranger.
MOMENTS = frozenset(
    {
        "exp_avg",
        "exp_avg_sq",
        "exp_inf",
        "max_exp_avg_sq",
        "momentum_buffer",
        "square_avg",
        "grad_avg",
        "acc_delta",
        "sum",
    }
)


def permute_rows(tensor: torch.Tensor, permutation: Rows) -> torch.Tensor:
    """Return a new tensor whose row i is row permutation[i] of `tensor`; raises ValueError if it is no permutation."""
    index = torch.as_tensor(permutation, dtype=torch.long)
    if not torch.equal(index.cpu().sort().values, torch.arange(tensor.shape[0])):
        raise ValueError(f"not a permutation of {tensor.shape[0]} rows: {index.tolist()}")
    return tensor.detach().index_select(0, index.to(tensor.device))


@torch.no_grad()
def reset_rows_xavier(
    weight: torch.Tensor, bias: torch.Tensor | None, rows: Rows, generator: np.random.Generator
) -> None:
    """Draw the given rows of `weight` (D, F) and `bias` (D,) again, in place, as a layer of len(rows) outputs.

    Weights N(0, 2 / (F + len(rows))), Glorot and Bengio 2010; biases U(+-1 / sqrt(F)). The draws come from a keyed
    numpy generator (`data_shards.keyed.generator`), weights first, so every rank and device gets the same values.
    """
    index = torch.as_tensor(rows, dtype=torch.long, device=weight.device)
    if not len(index):
        return
    num_inputs = weight.shape[1]
    draws = generator.standard_normal((len(index), num_inputs)) * math.sqrt(2.0 / (num_inputs + len(index)))
    weight.index_copy_(0, index, torch.from_numpy(draws).to(weight))
    if bias is not None:
        bound = 1.0 / math.sqrt(num_inputs)
        bias.index_copy_(
            0, index.to(bias.device), torch.from_numpy(generator.uniform(-bound, bound, len(index))).to(bias)
        )


@torch.no_grad()
def permute_and_reset_moments(state: MutableMapping[str, Any], permutation: Rows, rows: Rows) -> None:
    """Move the moments of one parameter's optimiser state with its rows and zero those of reset rows, in place.

    `state` is `optimizer.state[parameter]`; scalars such as "step" stay. Storage is kept (flat buffers stay flat).
    Raises ValueError for a tensor with D rows that is not a known moment.
    """
    num_rows = len(permutation)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0 or value.shape[0] != num_rows:
            continue
        if name not in MOMENTS:
            raise ValueError(f"optimiser state '{name}' has {num_rows} rows but is not a known moment")
        value.copy_(permute_rows(value, permutation))
        value.index_fill_(0, torch.as_tensor(rows, dtype=torch.long, device=value.device), 0.0)
