"""Which embedding dimensions the loss leans on: running sums of activation x gradient.

First-order Taylor criterion, Molchanov et al. 2017 (https://arxiv.org/abs/1611.06440). The loss is invariant to the
length of a block, so per sample the products of a block sum to zero: the published |mean| lets signs cancel over
samples as well, `mean_of_abs` does not. It makes no difference whether the products are taken before or after the
block is normalised: with u = e / |e|, e_i dL/de_i = u_i dL/du_i once dL/du is projected onto the sphere.

Only D sums are kept (the published code keeps every activation of an epoch). Every rank takes them of the vectors of
the whole batch, so they are equal everywhere.

Legend: N vectors, D embedding width.
"""

from __future__ import annotations

from typing import Literal

import torch

Mode = Literal["abs_of_mean", "mean_of_abs"]


class TaylorSaliency:
    """Sums (D,) in float64 on the device of the activations, and the number of samples behind them."""

    def __init__(self, num_dims: int, mode: Mode = "abs_of_mean", device: torch.device | str = "cpu") -> None:
        if mode not in ("abs_of_mean", "mean_of_abs"):
            raise ValueError(f"unknown saliency mode '{mode}'")
        self.mode = mode
        self.sums = torch.zeros(num_dims, dtype=torch.float64, device=device)
        self.count = 0

    @torch.no_grad()
    def update(self, activations: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add (N, D) activations and the gradient of the loss with respect to them; never waits for the device."""
        products = activations.detach().double() * gradients.detach().double()
        if self.mode == "mean_of_abs":
            products = products.abs()
        self.sums = self.sums.to(products.device, non_blocking=True) + products.sum(dim=0)
        self.count += activations.shape[0]

    def scores(self) -> torch.Tensor:
        """Return (D,) float64 >= 0: mean per sample, zero where nothing was seen."""
        return self.sums.abs() / max(self.count, 1)

    def reset(self) -> None:
        """Forget everything; an epoch starts."""
        self.sums = torch.zeros_like(self.sums)
        self.count = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return sums (D,) and count (1,), both float64: what checkpoints keep."""
        return {"sums": self.sums.clone(), "count": torch.tensor([float(self.count)], dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take what `state_dict` gave."""
        if state["sums"].shape != self.sums.shape:
            raise ValueError(f"saliency of {tuple(state['sums'].shape)} does not fit {tuple(self.sums.shape)}")
        self.sums = state["sums"].to(self.sums.device, torch.float64).clone()
        self.count = int(state["count"].item())
