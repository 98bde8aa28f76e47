"""One loss per subspace and one for the whole embedding, with what they learn: proxies, classifiers, boundaries.

Every rank takes the loss of the same global batch, so what losses learn has the same gradient on every rank and lives
beside the engine, whole on each; rank 0's gradient is sent to the others, since machines may round unlike each other.
Losses without parameters cost nothing of this.

When a subspace is split, what its loss has learned goes with its dimensions: the columns of the selected ones, and
their moments, move into the loss of the finished block; the loss of the new tail starts afresh.

Legend: D embedding width, K subspaces, d_k width of subspace k, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from cluster.growth import Growth
from trainer import distributed
from trainer.optim import set_rates
from trainer.subspaces.partition import SubspacePartition

Loss = Callable[..., Tensor]
WHOLE = "whole"


class Learners:
    """The losses of a partition.

    Args:
        make: (number of dimensions, name, seed or None) -> a loss; a plain function, or a module that learns. The name
            is "0", "1", ... or "whole", its start values are keyed by it; a seed gives it others.
        make_optimiser: parameter groups -> torch optimiser.
        lr: rate of what the losses learn.
        device: where it lives.
    """

    def __init__(
        self,
        make: Callable[[int, str, int | None], Loss],
        make_optimiser: Callable[[list[dict[str, object]]], torch.optim.Optimizer],
        lr: float,
        partition: SubspacePartition,
        device: torch.device | str = "cpu",
    ) -> None:
        self._make, self._make_optimiser, self._lr, self._device = make, make_optimiser, lr, device
        self._axes = _axes(make)
        self._start(partition)

    def of(self, subspace: int | None) -> Loss:
        """Return the loss of a subspace; None: of the whole embedding, which is the first one's where K is 1."""
        return self._losses[WHOLE if subspace is None and WHOLE in self._losses else str(subspace or 0)]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is learned, by "k/NAME" or "whole/NAME"."""
        for key, loss in self._losses.items():
            if isinstance(loss, nn.Module):
                for name, parameter in loss.named_parameters():
                    yield f"{key}/{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        """Return what is learned; empty for most losses."""
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self) -> None:
        """Forget gradients."""
        if self._optimiser is not None:
            self._optimiser.zero_grad(set_to_none=True)

    def step(self, factor: float) -> None:
        """Apply rank 0's gradients at `factor` times the base rate; all ranks ask together."""
        if self._optimiser is None:
            return
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        distributed.copy_from_leader(gradients)
        set_rates(self._optimiser, factor)
        self._optimiser.step()

    def grow(self, growth: Growth) -> None:
        """Follow a split of the last subspace."""
        if self._optimiser is None:
            self._start(SubspacePartition(growth.widths))
            return
        tail, width, kept = str(growth.parent), sum(growth.widths[growth.parent :]), growth.widths[growth.parent]
        start = sum(growth.widths[: growth.parent])
        columns = [index - start for index in growth.permutation[start : start + kept]]
        whole = WHOLE if WHOLE in self._losses else tail  # with one subspace its loss was that of the whole
        taken = {
            WHOLE: self._taken(whole, WHOLE, growth.permutation, growth.reset_rows, growth.seed),
            tail: self._taken(tail, tail, columns, (), growth.seed),
        }
        self._losses.update({name: loss for name, (loss, _) in taken.items()})
        self._losses[str(growth.parent + 1)] = self._made(width - kept, str(growth.parent + 1), growth.seed)
        self._optimise({key: value for _, moments in taken.values() for key, value in moments.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return what is learned and its moments: `loss/k/NAME`, `loss_optim/k/NAME/ENTRY`."""
        named = {f"loss/{name}": parameter.detach() for name, parameter in self.named_parameters()}
        for name, parameter in self.named_parameters():
            for entry, value in self._moments(parameter).items():
                named[f"loss_optim/{name}/{entry}"] = torch.as_tensor(value)
        return named

    @torch.no_grad()
    def load_tensors(self, named: dict[str, Tensor], partition: SubspacePartition) -> None:
        """Take back what `tensors` gave, for the partition of that moment."""
        self._start(partition)
        for name, parameter in self.named_parameters():
            parameter.copy_(named[f"loss/{name}"])
        moments: dict[str, dict[str, Tensor]] = {}
        for name, value in named.items():
            kind, _, rest = name.partition("/")
            if kind == "loss_optim":
                owner, _, entry = rest.rpartition("/")
                moments.setdefault(owner, {})[entry] = value.clone()
        self._optimise(moments)

    # -- inside

    def _start(self, partition: SubspacePartition) -> None:
        self._losses = {str(k): self._made(width, str(k)) for k, width in enumerate(partition.widths)}
        if partition.num_subspaces > 1:
            self._losses[WHOLE] = self._made(partition.num_dims, WHOLE)
        self._optimise({})

    def _made(self, num_dims: int, name: str, seed: int | None = None) -> Loss:
        loss = self._make(num_dims, name, seed)
        return loss.to(self._device) if isinstance(loss, nn.Module) else loss

    def _optimise(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Start an optimiser over what is learned now; `moments` by name are taken over, also from the one before."""
        old = getattr(self, "_optimiser", None)
        kept = {} if old is None else dict(old.state)
        parameters = dict(self.named_parameters())
        groups: list[dict[str, object]] = [{"params": list(parameters.values()), "lr": self._lr, "base_lr": self._lr}]
        self._optimiser = self._make_optimiser(groups) if parameters else None
        if self._optimiser is None:
            return
        for name, parameter in parameters.items():
            found = moments.get(name, kept.get(parameter))
            if found:
                self._optimiser.state[parameter].update(
                    {entry: value.to(self._device) if value.ndim else value for entry, value in found.items()}
                )

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return dict(self._optimiser.state.get(parameter, {})) if self._optimiser is not None else {}

    @torch.no_grad()
    def _taken(
        self, source: str, target: str, columns: Sequence[int], afresh: Sequence[int], seed: int
    ) -> tuple[Loss, dict[str, dict[str, Tensor]]]:
        """Return a loss of `columns` of another one's dimensions, new ones at `afresh`, and its moments."""
        old = self._losses[source]
        new = self._made(len(columns), target, seed)
        assert isinstance(old, nn.Module)
        assert isinstance(new, nn.Module)
        before, moments = dict(old.named_parameters()), {}
        index = torch.tensor(columns, device=self._device)
        fresh = torch.tensor(afresh, dtype=torch.long, device=self._device)
        for name, parameter in new.named_parameters():
            axis, start = self._axes[name], parameter.detach().clone()
            parameter.copy_(_columns(before[name], index, axis))
            if axis is not None:
                parameter.index_copy_(axis, fresh, start.index_select(axis, fresh))
            entries = {}
            for entry, value in self._moments(before[name]).items():
                same = torch.is_tensor(value) and value.shape == before[name].shape
                entries[entry] = _columns(value, index, axis if same else None)
                if same and axis is not None:
                    entries[entry].index_fill_(axis, fresh, 0.0)
            moments[f"{target}/{name}"] = entries
        return new, moments


def _columns(value: Tensor, index: Tensor, axis: int | None) -> Tensor:
    return value.detach().clone() if axis is None else value.detach().index_select(axis, index)


def _axes(make: Callable[[int, str, int | None], Loss]) -> dict[str, int | None]:
    """Return, per parameter of a loss, the axis that runs over the dimensions of the embedding: the one that is longer
    in a loss of more dimensions; None where there is none."""
    narrow, wide = (make(num_dims, "0", None) for num_dims in (2, 3))
    if not isinstance(narrow, nn.Module) or not isinstance(wide, nn.Module):
        return {}
    shapes = {name: parameter.shape for name, parameter in wide.named_parameters()}
    found: dict[str, int | None] = {}
    for name, parameter in narrow.named_parameters():
        differing = [axis for axis, size in enumerate(parameter.shape) if size != shapes[name][axis]]
        assert len(differing) < 2, f"the loss has a parameter {name} with two axes of the embedding"
        found[name] = differing[0] if differing else None
    return found
