"""What an epoch will do, as a pure function of the configuration and of what has happened so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from data_shards.errors import UserError

Phase = Literal["subspace", "full"]


@dataclass(frozen=True)
class PlanConfig:
    """`finetune_epoch`: from here on the loss is on the full embedding and all rows are one cluster (None: never).
    `recluster_every` epochs (0: only at the start and after growth). `after_growth` "at_once" reclusters in the epoch
    after a split; "published" waits for an epoch divisible by `recluster_every`, as the released code did."""

    num_epochs: int
    finetune_epoch: int | None = None
    recluster_every: int = 2
    after_growth: Literal["at_once", "published"] = "at_once"

    def __post_init__(self) -> None:
        if self.num_epochs < 1 or self.recluster_every < 0:
            raise UserError("A plan needs num_epochs >= 1 and recluster_every >= 0.")


@dataclass(frozen=True)
class EpochPlan:
    """The plan of one epoch. `version` counts the growths so far (the version of the partition); in phase "full" the
    widths keep their last value (blocks are still normalised apart) and every row trains the whole embedding."""

    epoch: int
    version: int
    num_subspaces: int
    widths: tuple[int, ...]
    phase: Phase
    recluster: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EpochPlan:
        """Rebuild what `to_json` gave."""
        return cls(**{**data, "widths": tuple(data["widths"])})


def phase_of(config: PlanConfig, epoch: int) -> Phase:
    """Return "subspace" before the fine-tuning epoch and "full" from it on."""
    return "full" if config.finetune_epoch is not None and epoch >= config.finetune_epoch else "subspace"


def plan_epoch(config: PlanConfig, epoch: int, widths: tuple[int, ...], version: int, grew_before: bool) -> EpochPlan:
    """Plan `epoch`; `grew_before`: the epoch before it ended with a growth. K = 1 never clusters."""
    phase = phase_of(config, epoch)
    regular = config.recluster_every > 0 and epoch % config.recluster_every == 0
    due = epoch == 0 or regular or (grew_before and config.after_growth == "at_once")
    return EpochPlan(epoch, version, len(widths), widths, phase, len(widths) > 1 and phase == "subspace" and due)
