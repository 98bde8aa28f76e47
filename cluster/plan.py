"""What an epoch will do, as a pure function of the configuration and of what has happened so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from data_shards.errors import UserError

Phase = Literal["subspace", "joint", "full"]


@dataclass(frozen=True)
class PlanConfig:
    """`full_embedding_epoch`: from here on the loss is on the full embedding, on batches of one cluster each still;
    `finetune_epoch`: from here on all rows are one cluster as well (None: never). `recluster_every` epochs (0: only at
    the start and after growth). `after_growth` "at_once" reclusters in the epoch after a split; "published" waits for
    an epoch divisible by `recluster_every`, as the released code did.

    `double_every` epochs the number of clusters doubles, from 1 up to `double_to`, while the embedding stays whole (the
    learners are masks); with `freeze_divided` the backbone rests in the epoch after a doubling."""

    num_epochs: int
    finetune_epoch: int | None = None
    recluster_every: int = 2
    after_growth: Literal["at_once", "published"] = "at_once"
    full_embedding_epoch: int | None = None
    double_every: int | None = None
    double_to: int = 1
    freeze_divided: bool = False

    def __post_init__(self) -> None:
        if self.num_epochs < 1 or self.recluster_every < 0:
            raise UserError("A plan needs num_epochs >= 1 and recluster_every >= 0.")
        if self.double_to < 1 or (self.double_every is not None and self.double_every < 1):
            raise UserError("A plan doubles every 1 epoch or more, to 1 cluster or more.")


@dataclass(frozen=True)
class EpochPlan:
    """The plan of one epoch. `version` counts the changes of the partition so far. In phase "joint" batches are still
    of one cluster each, in phase "full" of all rows; in both the loss is on the whole embedding, whose widths keep
    their last value (blocks are still normalised apart). `frozen`: the backbone's rate is 0."""

    epoch: int
    version: int
    num_subspaces: int
    widths: tuple[int, ...]
    phase: Phase
    recluster: bool
    frozen: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EpochPlan:
        """Rebuild what `to_json` gave."""
        return cls(**{**data, "widths": tuple(data["widths"])})


def phase_of(config: PlanConfig, epoch: int) -> Phase:
    """Return "subspace", then "joint" from the epoch of the full embedding on, "full" from the fine-tuning epoch on."""
    if config.finetune_epoch is not None and epoch >= config.finetune_epoch:
        return "full"
    return "joint" if config.full_embedding_epoch is not None and epoch >= config.full_embedding_epoch else "subspace"


def num_clusters(config: PlanConfig, epoch: int, num_subspaces: int) -> int:
    """Return how many clusters an epoch has: one per subspace, or what the doublings until then make."""
    if config.double_every is None:
        return num_subspaces
    doublings = min(epoch // config.double_every, config.double_to.bit_length())
    return min(2**doublings, config.double_to)


def plan_epoch(config: PlanConfig, epoch: int, widths: tuple[int, ...], version: int, grew_before: bool) -> EpochPlan:
    """Plan `epoch`; `grew_before`: the epoch before it ended with a change of the partition. K = 1 never clusters."""
    phase, clusters = phase_of(config, epoch), num_clusters(config, epoch, len(widths))
    regular = config.recluster_every > 0 and epoch % config.recluster_every == 0
    doubled = epoch > 0 and clusters > num_clusters(config, epoch - 1, len(widths))
    due = epoch == 0 or regular or doubled or (grew_before and config.after_growth == "at_once")
    recluster = clusters > 1 and phase != "full" and due
    return EpochPlan(epoch, version, clusters, widths, phase, recluster, doubled and config.freeze_divided)
