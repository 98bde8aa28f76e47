"""A critic of shapes: does a mask look like one of the prior masks? The second player of shape-guided segmentation.

Chen et al. 2021, https://arxiv.org/abs/2108.09440; a plain adversarial game (Goodfellow et al. 2014,
https://arxiv.org/abs/1406.2661) with the non-saturating loss for the network. Not of that paper is a penalty on the
critic's gradient at prior masks (Mescheder et al. 2018, https://arxiv.org/abs/1801.04406): they are black and white,
and maps are not, so a critic without it soon tells them apart by that alone, and the network learns nothing of shapes.

Legend: B images, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import distributed
from trainer.backbones.initialise import kaiming_convolutions
from trainer.optim import set_rates

WIDTHS = (16, 32, 32, 32, 32)
Priors = Callable[[int, npt.NDArray[np.int64]], Tensor]  # step, places (n,) -> masks (n, S, S) in {0, 1}


class Critic(nn.Module):
    """Masks (B, 1, S, S) -> logits (B,): large where they look like prior masks.

    Five convolutions, each followed by pooling, two without padding, a mean and two layers; images too small for five
    poolings get fewer. `slope` is that of the leaky ReLU below 0: the released code passes 1, which makes the critic
    linear but for the pooling.
    """

    def __init__(self, side: int, slope: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        if side < 5:
            raise ValueError(f"a critic needs masks of 5 pixels at least, got {side}")
        self.slope = slope
        self.pools = [side // 2 ** (i + 1) >= 5 for i in range(len(WIDTHS))]
        inputs = (1, *WIDTHS)
        self.convs = nn.ModuleList(nn.Conv2d(inputs[i], width, 3, padding=1) for i, width in enumerate(WIDTHS))
        self.valid = nn.ModuleList(nn.Conv2d(32, 32, 3) for _ in range(2))
        self.hidden, self.last = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 1, 1)
        kaiming_convolutions(self, seed, "critic")

    def forward(self, masks: Tensor) -> Tensor:
        """Return the logits."""
        x = masks
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = F.leaky_relu(conv(x), self.slope)
            x = F.max_pool2d(x, 2) if pool else x
        for conv in self.valid:
            x = F.leaky_relu(conv(x), self.slope)
        x = F.leaky_relu(self.hidden(x.mean(dim=(2, 3), keepdim=True)), self.slope)
        logits: Tensor = self.last(x).flatten()
        return logits


class ShapeGuide:
    """The critic, its optimiser and the prior masks that it has seen.

    Args:
        critic: on its device.
        priors: step and places -> prior masks, keyed, the same on every rank.
        make_optimiser, lr: of the critic.
        weight: of the critic's judgement in the network's loss.
        penalty: weight, in the critic's loss, of the squared norm of its logit's gradient at prior masks.
        agreement: weight, in the network's loss, of the squared difference of the maps of an image's two views. A
            critic cannot know where in an image a vessel is: it likes a map that is a few pixels beside as well.
    """

    def __init__(
        self,
        critic: Critic,
        priors: Priors,
        make_optimiser: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
        lr: float,
        weight: float = 1.0,
        penalty: float = 0.0,
        agreement: float = 0.0,
    ) -> None:
        self.critic, self.priors, self.weight = critic, priors, weight
        self.penalty, self.agreement = penalty, agreement
        self._make, self._lr = make_optimiser, lr
        self._optimise()
        self._shown: Tensor | None = None

    def loss(self, maps: Tensor) -> Tensor:
        """Return what the network pays for maps (B, S, S) in [0, 1] that do not look like prior masks, ()."""
        self._shown = maps.detach()
        self.critic.requires_grad_(False)  # gradients go through it, not into it
        logits = self.critic(maps[:, None])
        self.critic.requires_grad_(True)
        return self.weight * F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    def step(self, factor: float, number: int) -> None:
        """Teach the critic the maps of this step against prior masks; all ranks ask together."""
        shown = self._shown
        assert shown is not None
        real = self.priors(number, np.arange(len(shown))).to(shown)
        real.requires_grad_(self.penalty > 0)
        judged = self.critic(torch.cat([real, shown])[:, None])
        wanted = torch.cat([torch.ones(len(real)), torch.zeros(len(shown))]).to(judged)
        self.optimiser.zero_grad(set_to_none=True)
        loss = F.binary_cross_entropy_with_logits(judged, wanted)
        if self.penalty > 0:
            (slopes,) = torch.autograd.grad(judged[: len(real)].sum(), real, create_graph=True)
            loss = loss + self.penalty * slopes.square().sum(dim=(1, 2)).mean()
        loss.backward()
        gradients = [parameter.grad for parameter in self.critic.parameters() if parameter.grad is not None]
        distributed.copy_from_leader(gradients)
        set_rates(self.optimiser, factor)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and moments: `loss/critic/NAME`, `loss_optim/critic/NAME/ENTRY`."""
        named = {f"loss/critic/{name}": parameter.detach() for name, parameter in self.critic.named_parameters()}
        for name, parameter in self.critic.named_parameters():
            for entry, value in self.optimiser.state.get(parameter, {}).items():
                named[f"loss_optim/critic/{name}/{entry}"] = torch.as_tensor(value)
        return named

    @torch.no_grad()
    def load_tensors(self, named: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self._optimise()
        parameters = dict(self.critic.named_parameters())
        for name, parameter in parameters.items():
            parameter.copy_(named[f"loss/critic/{name}"])
        for key, value in named.items():
            if key.startswith("loss_optim/critic/"):
                name, _, entry = key.removeprefix("loss_optim/critic/").rpartition("/")
                device = parameters[name].device if value.ndim else "cpu"
                self.optimiser.state[parameters[name]][entry] = value.clone().to(device)

    def _optimise(self) -> None:
        self.optimiser = self._make([{"params": list(self.critic.parameters()), "lr": self._lr, "base_lr": self._lr}])
