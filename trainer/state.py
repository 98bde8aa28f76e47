"""Where a run is: everything that resume needs besides weights and moments, and its way into a checkpoint and back.

Legend: S samples, D embedding width, K subspaces.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.assignment import Assignment
from data_shards.errors import intact
from trainer.checkpoint import Checkpoint
from trainer.subspaces.partition import SubspacePartition
from trainer.subspaces.saliency import TaylorSaliency


@dataclass
class RunState:
    """The position in the run, and what the next step depends on.

    `step` counts the steps of the whole run, `step_in_epoch` those of the epoch that is under way; `skipped_steps` of
    them were not applied, of which `skipped_in_a_row` came last. `num_losses` are behind `loss_sum`. `phase` and
    `frozen` are those of the epoch's plan.
    """

    partition: SubspacePartition
    saliency: TaylorSaliency
    assignment: Assignment | None = None
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    phase: str = "subspace"
    frozen: bool = False
    loss_sum: float = 0.0
    num_losses: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)  # the environment of this process, not of the run
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": -1, "score": None})

    def to_checkpoint(self, tensors: dict[str, Tensor], controller: dict[str, Any], attempt: int) -> Checkpoint:
        """Return the checkpoint of this moment; `tensors` are the engine's."""
        own = {f"saliency/{name}": value for name, value in self.saliency.state_dict().items()}
        state: dict[str, Any] = {
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "phase": self.phase,
            "frozen": self.frozen,
            "loss_sum": self.loss_sum,
            "num_losses": self.num_losses,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": self.best,
            "partition": {"widths": list(self.partition.widths), "version": self.partition.version},
            "controller": controller,
            "attempt": attempt,
            "time": time.time(),
            "fingerprint": self.fingerprint,
        }
        if self.assignment is not None:
            own["assignment/labels"] = torch.from_numpy(np.array(self.assignment.labels))
            state["assignment"] = {
                "version": self.assignment.version,
                "num_subspaces": self.assignment.num_subspaces,
                "hash": self.assignment.hash,
            }
        return Checkpoint({**tensors, **own}, state)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, saliency: TaylorSaliency) -> RunState:
        """Return the state that `to_checkpoint` stored.

        Raises:
            DataIntegrityError: it is not one.
        """
        with intact("the state in the checkpoint"):
            state = checkpoint.state
            saliency.load_state_dict({name: checkpoint.tensors[f"saliency/{name}"] for name in ("sums", "count")})
            assignment = None
            if "assignment" in state:
                labels = checkpoint.tensors["assignment/labels"].numpy()
                version, number = (int(state["assignment"][name]) for name in ("version", "num_subspaces"))
                assignment = Assignment(labels, version, number)
            widths = tuple(int(width) for width in state["partition"]["widths"])
            if sum(widths) != len(saliency.sums):
                raise ValueError(f"widths {widths} are not those of {len(saliency.sums)} dimensions")
            counts = ("epoch", "step_in_epoch", "step", "num_losses", "skipped_steps", "skipped_in_a_row")
            numbers: dict[str, Any] = {name: int(state[name]) for name in counts}
            if not isinstance(state["controller"], dict):
                raise TypeError("there is no state of the controller")
            score = state["best"]["score"]
            best = {"epoch": int(state["best"]["epoch"]), "score": None if score is None else float(score)}
            phase, frozen, loss_sum = str(state["phase"]), bool(state.get("frozen", False)), float(state["loss_sum"])
            partition = SubspacePartition(widths, int(state["partition"]["version"]))
            return cls(
                partition, saliency, assignment, phase=phase, frozen=frozen, loss_sum=loss_sum, best=best, **numbers
            )
