"""Taylor sums: both modes by loops, additive over ranks, exact round trip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.subspaces.saliency import Mode, TaylorSaliency


def steps(num: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(3 + i, 4, generator=generator), torch.randn(3 + i, 4, generator=generator)) for i in range(num)
    ]


@pytest.mark.parametrize("mode", ["abs_of_mean", "mean_of_abs"])
def test_scores_equal_loops(mode: Mode) -> None:
    saliency = TaylorSaliency(4, mode)
    products: list[list[float]] = [[], [], [], []]
    for activations, gradients in steps():
        saliency.update(activations, gradients)
        for a, g in zip(activations.tolist(), gradients.tolist(), strict=True):
            for d in range(4):
                products[d].append(a[d] * g[d])
    expected = [abs(np.mean(p)) if mode == "abs_of_mean" else np.mean(np.abs(p)) for p in products]
    assert saliency.scores().tolist() == pytest.approx(expected, rel=1e-12)
    assert saliency.sums.dtype == torch.float64


def test_sums_of_ranks_add_up() -> None:
    alone, ranks = TaylorSaliency(4), [TaylorSaliency(4), TaylorSaliency(4)]
    for activations, gradients in steps():
        alone.update(activations, gradients)
        ranks[0].update(activations[:2], gradients[:2])
        ranks[1].update(activations[2:], gradients[2:])
    states = [rank.state_dict() for rank in ranks]
    together = TaylorSaliency(4)
    together.load_state_dict({name: states[0][name] + states[1][name] for name in states[0]})
    torch.testing.assert_close(together.scores(), alone.scores())
    assert together.count == alone.count


def test_state_is_a_copy_and_comes_back_exactly() -> None:
    saliency, other = TaylorSaliency(4), TaylorSaliency(4)
    saliency.update(*steps()[0])
    state = saliency.state_dict()
    saliency.update(*steps()[1])
    other.load_state_dict(state)
    other.update(*steps()[1])
    assert torch.equal(other.sums, saliency.sums)
    saliency.reset()
    assert saliency.scores().tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="does not fit"):
        TaylorSaliency(5).load_state_dict(state)
    with pytest.raises(ValueError, match="unknown"):
        TaylorSaliency(5, "other")  # type: ignore[arg-type]


def test_update_keeps_no_graph() -> None:
    saliency = TaylorSaliency(4)
    saliency.update(torch.ones(2, 4, requires_grad=True) * 2, torch.ones(2, 4))
    assert not saliency.sums.requires_grad
