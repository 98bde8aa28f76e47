"""Learners that share all dimensions and differ by a learned mask: the follow-up of Divide and Conquer.

Sanakoyeu et al. 2021, "Improving Deep Metric Learning by Divide and Conquer", https://arxiv.org/abs/2109.04003. Learner
k sees the embedding times relu(m_k). Clusters are divided in two again and again; a child starts with its parent's
mask, and a penalty on the cosine of masks drives them apart. Nothing is cut, so growth moves no rows.

Where we differ: clusters are found by one k-means of twice as many, not inside each cluster, and a child's parent is
the cluster that most of its rows were in; so the clusters do not inherit the mistakes of earlier ones.

Legend: B images of the global batch, D embedding width, K learners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.growth import Growth
from data_shards import keyed
from trainer import distributed
from trainer.losses.library import keyed_streams
from trainer.objectives.objective import Objective, Update
from trainer.optim import set_rates
from trainer.subspaces.partition import SubspacePartition


class MaskedObjective(Objective):
    """Take the loss of the masked embedding of one learner, plus `penalty` times the mean cosine of two masks.

    Args:
        loss, miner, seed, draws: as in `SubspaceObjective`; the loss must not learn anything itself.
        num_learners: the most there will be; one at the start.
        make_optimiser, lr: of the masks.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        miner: Callable[..., tuple[Tensor, ...] | None],
        seed: int,
        num_dims: int,
        num_learners: int,
        make_optimiser: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
        lr: float,
        penalty: float = 0.01,
        device: torch.device | str = "cpu",
        draws: bool = False,
    ) -> None:
        self.loss, self.miner, self.seed, self.penalty, self.draws = loss, miner, seed, penalty, draws
        self.masks = nn.Parameter(torch.ones(num_learners, num_dims, device=device))
        self.num_active = 1
        self._make_optimiser, self._lr = make_optimiser, lr
        self._optimise()

    def updates(
        self, vectors: Tensor, labels: Tensor, partition: SubspacePartition, subspace: int | None, step: int
    ) -> Iterator[Update]:
        self.masks.grad = None
        unit = F.normalize(vectors if subspace is None else vectors * self.masks[subspace].relu(), dim=1)
        key = keyed.key(self.seed, "mine", step) >> 1
        tuples = self.miner(unit.detach(), labels, torch.Generator(unit.device).manual_seed(key))
        with keyed_streams(keyed.key(self.seed, "loss", step) >> 1) if self.draws else nullcontext():
            loss = self.loss(unit, labels, tuples)
        overlap = self.overlap() if subspace is not None and self.num_active > 1 else loss.new_zeros(())
        terms = {"learner": loss, "overlap": self.penalty * overlap}
        yield Update("embedding", loss + terms["overlap"], terms)

    def overlap(self) -> Tensor:
        """Return the mean cosine of two active masks, ()."""
        unit = F.normalize(self.masks[: self.num_active].relu(), dim=1)
        cosines = unit @ unit.T
        return (cosines.sum() - cosines.diagonal().sum()) / (self.num_active * (self.num_active - 1))

    def parameters(self) -> Sequence[Tensor]:
        return [self.masks]

    def step(self, factor: float) -> None:
        if self.masks.grad is None:
            return
        distributed.copy_from_leader([self.masks.grad])
        set_rates(self._optimiser, factor)
        self._optimiser.step()

    def grow(self, growth: Growth) -> None:
        raise AssertionError("masks are divided, not grown")

    @torch.no_grad()
    def divide(self, parents: Sequence[int]) -> None:
        """Give every learner the mask of its parent, (K,) numbers of the learners before; moments start afresh."""
        self.masks[: len(parents)] = self.masks[list(parents)].clone()
        self.num_active = len(parents)
        self._optimise()

    def tensors(self) -> dict[str, Tensor]:
        moments = {f"loss_optim/masks/{name}": torch.as_tensor(value) for name, value in self._state().items()}
        return {"loss/masks": self.masks.detach(), "loss/num_active": torch.tensor([self.num_active]), **moments}

    @torch.no_grad()
    def load_tensors(self, named: dict[str, Tensor], partition: SubspacePartition) -> None:
        self.masks.copy_(named["loss/masks"])
        self.num_active = int(named["loss/num_active"])
        self._optimise()
        for name, value in named.items():
            if name.startswith("loss_optim/masks/"):
                entry = name.rpartition("/")[2]
                self._optimiser.state[self.masks][entry] = value.clone().to(self.masks.device if value.ndim else "cpu")

    def _optimise(self) -> None:
        self._optimiser = self._make_optimiser([{"params": [self.masks], "lr": self._lr, "base_lr": self._lr}])

    def _state(self) -> dict[str, Tensor]:
        return dict(self._optimiser.state.get(self.masks, {}))
