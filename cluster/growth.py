"""When the embedding grows a subspace and which neurons found it: pure policies over what epochs reported.

Source: the growth rule of ADSL (Adiga, Dolz, Lombaert 2022, https://doi.org/10.1109/JBHI.2022.3186882) with the
constants of the released code. The tail, the last block, is the one still being explored. When progress stalls its
most salient neurons become a finished subspace; the others are re-initialised and form the new tail.

Where we differ: the score is measured on validation data, rows move by one gathered permutation (the released code
copied in place and lost rows), and a decision is a value that every rank applies to weights and moments alike.

Legend: D embedding width, R width of the tail, n neurons selected.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_shards import keyed
from data_shards.errors import UserError


@dataclass(frozen=True)
class EpochReport:
    """What one epoch told: `metric` is the watched validation score (None: not evaluated); `grew`, `rolled_back` what
    followed, by the decision of that id."""

    epoch: int
    metric: float | None
    grew: bool = False
    rolled_back: bool = False
    decision_id: str = ""


@dataclass(frozen=True)
class Growth:
    """A decision to grow. New slot i takes the weights, bias and moments of old slot `permutation[i]` (gathered);
    then the slots in `reset_rows`, the new tail, are re-initialised from `seed` and their moments zeroed."""

    decision_id: str
    epoch: int
    parent: int
    permutation: tuple[int, ...]
    widths: tuple[int, ...]
    reset_rows: tuple[int, ...]
    seed: int

    @property
    def num_subspaces(self) -> int:
        """K after the growth."""
        return len(self.widths)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Growth:
        """Rebuild what `to_json` gave."""
        lists = {name: tuple(int(n) for n in data[name]) for name in ("permutation", "widths", "reset_rows")}
        numbers = {name: int(data[name]) for name in ("epoch", "parent", "seed")}
        if sorted(lists["permutation"]) != list(range(sum(lists["widths"]))) or min(lists["widths"]) < 1:
            raise ValueError("the permutation is none of the dimensions")
        return cls(decision_id=str(data["decision_id"]), **lists, **numbers)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rollback:
    """A decision to take the last split back, that of id `undoes`: weights, moments and assignment become those of the
    best epoch, which was before it, and the partition has `widths` again."""

    decision_id: str
    undoes: str
    epoch: int
    widths: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Rollback:
        """Rebuild what `to_json` gave."""
        widths = tuple(int(width) for width in data["widths"])
        if not widths or min(widths) < 1:
            raise ValueError("a rollback to no partition")
        return cls(str(data["decision_id"]), str(data["undoes"]), int(data["epoch"]), widths)


Change = Growth | Rollback


def change_from_json(data: dict[str, Any]) -> Change:
    """Rebuild what `to_json` of either gave."""
    return Growth.from_json(data) if "permutation" in data else Rollback.from_json(data)


@dataclass(frozen=True)
class Progress:
    """Where a history stands: the best metric so far, its epoch (-1: none), the epoch of the last split, whether that
    one is on trial (no new best since), and whether another split is allowed."""

    best: float
    best_epoch: int
    last_growth_epoch: int
    on_trial: bool
    may_explore: bool


def progress(history: Sequence[EpochReport], min_delta: float = 0.0) -> Progress:
    """Fold a history, oldest first. After a split, exploring is allowed again once a new best has been reached."""
    best, best_epoch, last_growth, on_trial, may_explore = -math.inf, -1, -1, False, True
    for report in history:
        if report.metric is not None and math.isfinite(report.metric) and report.metric > best + min_delta:
            best, best_epoch, on_trial, may_explore = report.metric, report.epoch, False, True
        if report.grew:
            last_growth, on_trial, may_explore = report.epoch, True, False
        if report.rolled_back:
            on_trial = False
    return Progress(best, best_epoch, last_growth, on_trial, may_explore)


class GrowthPolicy(Protocol):
    """Looks at history and returns a decision; only the controller acts on it.

    `min_epochs`: how many epochs a new subspace has to have before it, or nothing may grow.
    """

    @property
    def min_epochs(self) -> int: ...

    def decide(
        self,
        history: Sequence[EpochReport],
        widths: tuple[int, ...],
        scores: npt.ArrayLike | None,
        seed: int,
        may_grow: bool = True,
    ) -> Change | None:
        """`scores` (D,) are the saliencies of the last epoch, signed or not; None when there are none."""
        ...


@dataclass(frozen=True)
class NoGrowth:
    """Fixed number of subspaces."""

    min_epochs: int = 1

    def decide(
        self,
        history: Sequence[EpochReport],
        widths: tuple[int, ...],
        scores: npt.ArrayLike | None,
        seed: int,
        may_grow: bool = True,
    ) -> Change | None:
        """Never grow."""
        return None


@dataclass(frozen=True)
class PlateauGrowth:
    """Split the tail after `patience` epochs without a new best.

    The tail must have more than `min_tail` neurons. Absolute scores are scaled to 0 (least) .. 1 (largest) over the
    tail; "threshold" selects those above `threshold` (published; K is then decided by the shape of the score
    distribution: on random Gaussian scores, D = 128, the median is 9), "top_fraction" the best `fraction`, kept within
    [min_selected, R - min_selected]. Fewer than `min_selected`: no split now, retried at the next epoch.
    `explore` "new_best" (published): one split per stagnation, none until a new best; "patience": another split after
    `patience` epochs since the last one even without a new best. `accept` "always" (published) keeps every split;
    "validated" takes one back that has led to no new best within `patience` epochs, and needs that many to be left.
    """

    patience: int = 10
    min_delta: float = 0.0
    min_tail: int = 10
    min_selected: int = 5
    select: Literal["threshold", "top_fraction"] = "threshold"
    threshold: float = 0.5
    fraction: float = 0.5
    max_subspaces: int | None = None
    explore: Literal["new_best", "patience"] = "new_best"
    accept: Literal["always", "validated"] = "always"

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_selected < 1:
            raise UserError("Growth needs patience >= 1 and min_selected >= 1.")
        if not 0.0 <= self.threshold < 1.0 or not 0.0 < self.fraction < 1.0:
            raise UserError("Growth needs a threshold in [0, 1) and a fraction in (0, 1).")
        if self.accept == "validated" and self.explore == "patience":
            raise UserError("Validated growth splits again after a new best only: explore must be 'new_best'.")

    @property
    def min_epochs(self) -> int:
        """A split on trial needs its `patience`; any other one epoch that trains it."""
        return self.patience if self.accept == "validated" else 1

    def decide(
        self,
        history: Sequence[EpochReport],
        widths: tuple[int, ...],
        scores: npt.ArrayLike | None,
        seed: int,
        may_grow: bool = True,
    ) -> Change | None:
        """Return what follows the last epoch of `history`: a split, the end of a split on trial, or None."""
        if self.has_failed(history):
            return _undo(history, widths)
        if scores is None or not may_grow or not history or not self.is_due(history):
            return None
        if self.max_subspaces is not None and len(widths) >= self.max_subspaces:
            return None
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != (sum(widths),):
            raise UserError(f"Growth needs one score per neuron: {sum(widths)} expected, got shape {values.shape}.")
        selected = self.select_neurons(values[-widths[-1] :])
        return None if selected is None else split_tail(history[-1].epoch, widths, selected, values, seed)

    def has_failed(self, history: Sequence[EpochReport]) -> bool:
        """Say whether the last split has had its trial and has led to no new best."""
        if self.accept != "validated" or not history:
            return False
        state = progress(history, self.min_delta)
        return state.on_trial and history[-1].epoch >= state.last_growth_epoch + self.patience

    def is_due(self, history: Sequence[EpochReport]) -> bool:
        """Say whether progress has stalled for long enough."""
        now, state = history[-1].epoch, progress(history, self.min_delta)
        if now <= 0:
            return False
        if state.may_explore:
            return now >= state.best_epoch + self.patience
        latest = max(state.best_epoch, state.last_growth_epoch)
        return self.explore == "patience" and now >= latest + self.patience

    def select_neurons(self, tail: npt.NDArray[np.float64]) -> npt.NDArray[np.int64] | None:
        """Return positions in the (R,) tail, highest score first, ties by position; None when no split is feasible."""
        size = np.abs(tail)
        if len(tail) <= self.min_tail or not np.isfinite(size).all() or size.max() == size.min():
            return None
        relative = (size - size.min()) / (size.max() - size.min())
        order = np.argsort(-relative, kind="stable")
        if self.select == "threshold":
            order = order[: int(np.count_nonzero(relative > self.threshold))]
            return order if len(order) >= self.min_selected else None
        most = len(tail) - self.min_selected
        if most < self.min_selected:
            return None
        return order[: min(max(round(self.fraction * len(tail)), self.min_selected), most)]


def _undo(history: Sequence[EpochReport], widths: tuple[int, ...]) -> Rollback:
    """Return the rollback that gives the last subspace back to its parent."""
    undoes = next(report.decision_id for report in reversed(history) if report.grew)
    before = (*widths[:-2], widths[-2] + widths[-1])
    return Rollback(f"rollback-{history[-1].epoch}-{undoes.rpartition('-')[2]}", undoes, history[-1].epoch, before)


def split_tail(
    epoch: int, widths: tuple[int, ...], selected: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], seed: int
) -> Growth:
    """Return the growth that puts the `selected` positions of the tail, in this order, before the other ones."""
    start, num_dims, num = sum(widths[:-1]), sum(widths), len(selected)
    rest = np.setdiff1d(np.arange(widths[-1]), selected)
    permutation = np.concatenate((np.arange(start), start + selected, start + rest))
    record = json.dumps([epoch, list(widths), [float(s).hex() for s in scores], seed])
    return Growth(
        decision_id=f"growth-{epoch}-{hashlib.sha256(record.encode()).hexdigest()[:16]}",
        epoch=epoch,
        parent=len(widths) - 1,
        permutation=tuple(int(i) for i in permutation),
        widths=(*widths[:-1], num, widths[-1] - num),
        reset_rows=tuple(range(start + num, num_dims)),
        seed=keyed.key(seed, "growth", epoch, len(widths)),
    )
