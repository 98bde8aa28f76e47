"""What a user may set, in one place: a YAML file, then `a.b=c` overrides, checked before any resource is taken.

Unknown keys are errors that name the nearest known one. Importing this file imports neither torch nor Ray, so a typing
mistake is answered in well under a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from data_shards.errors import UserError
from launch.mistakes import validated
from launch.overrides import environment_overrides, is_set, parse_overrides, set_at
from launch.plain_values import short
from launch.sections import (
    CheckpointSection,
    ClusterSection,
    DataSection,
    EvaluateSection,
    GrowthSection,
    LaunchSection,
    ModelSection,
    ObjectiveSection,
    OptimSection,
    RaySection,
    Section,
    TrainSection,
)
from launch.yaml_file import read

Resume = Literal["auto", "never", "must"]
SAFE_NAME = re.compile(r"\w[\w.+=-]{0,99}", re.ASCII)


class RunConfig(Section):
    """A whole run."""

    name: str = Field(
        "subspace", description="what the run is called; its folder is runs/NAME unless --run-dir is given"
    )
    seed: int = Field(0, description="of every random draw")
    deterministic: bool = Field(
        False, description="the same bytes for any number of ranks and after any restart, somewhat slower"
    )
    compat: Literal["published"] | None = Field(
        None, description="published: settings as in the released code of ADSL, where none are given"
    )
    data: DataSection
    model: ModelSection = ModelSection()
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    cluster: ClusterSection = ClusterSection()
    growth: GrowthSection = GrowthSection()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    ray: RaySection = RaySection()
    launch: LaunchSection = LaunchSection()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        train = self.train
        if not SAFE_NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} names folders: use up to 100 letters, digits and any of . _ + = -")
        if train.samples_per_class and train.batch_size % train.samples_per_class:
            per_class = train.samples_per_class
            raise ValueError(
                f"train.batch_size {train.batch_size} is not divisible by train.samples_per_class {per_class}"
            )
        if train.finetune_epoch is not None and train.finetune_epoch > train.epochs:
            raise ValueError(f"train.finetune_epoch {train.finetune_epoch} is after train.epochs {train.epochs}")
        full = train.full_embedding_epoch
        if full is not None and full > (train.epochs if train.finetune_epoch is None else train.finetune_epoch):
            raise ValueError(f"train.full_embedding_epoch {full} is after train.finetune_epoch or train.epochs")
        doubling = self.growth.enabled and self.growth.rule == "doubling"
        if doubling and (self.growth.max_subspaces is None or self.model.num_subspaces != 1):
            raise ValueError("growth.rule doubling needs growth.max_subspaces, and model.num_subspaces 1")
        branches = self.model.gate.arguments.get("branches", 1)
        for what, cannot_grow in (
            ("model.head.name features", self.model.head.name == "features"),
            ("model.gate.branches", branches != 1),
            ("objective.ensemble", self.objective.ensemble is not None),
            ("objective.local", self.objective.local is not None),
            ("objective.masks", self.objective.masks),
        ):
            if cannot_grow and self.growth.enabled:
                raise ValueError(f"{what}: nothing can grow with it, set growth.enabled false")
        if self.cluster.max_age is not None and self.cluster.features != "recycled":
            raise ValueError("cluster.max_age is the age of kept features: it needs cluster.features recycled")
        if self.cluster.features == "recycled" and (self.objective.local is not None or self.objective.masks):
            raise ValueError("cluster.features recycled: there are no clusters with objective.local or objective.masks")
        self._check_kind()
        if branches not in (1, self.model.num_subspaces):
            raise ValueError(f"model.gate.branches {branches!r} must be model.num_subspaces, one learner for each mask")
        if len(self.data.mean) != self.data.channels or len(self.data.std) != self.data.channels:
            raise ValueError(f"data.mean and data.std need {self.data.channels} values, as data.channels says")
        if self.model.num_subspaces > self.model.num_dims:
            raise ValueError(f"model.num_subspaces {self.model.num_subspaces} is more than model.num_dims")
        if self.deterministic and train.batch_size % train.logical_shards:
            raise ValueError(
                f"train.batch_size {train.batch_size} is not divisible by train.logical_shards {train.logical_shards}"
            )
        return self

    def _check_kind(self) -> None:
        """Raise ValueError where the parts of one kind of training are not together."""
        kinds = {
            "objective.local": (self.objective.local is not None, "dense", "loss", {"loss"}),
            "objective.masks": (self.objective.masks, "mask", "masks", {"dice"}),
        }
        for name, (chosen, head, by, monitors) in kinds.items():
            if not chosen == (self.model.head.name == head) == (self.evaluate.by == by):
                raise ValueError(f"{name}, model.head.name {head} and evaluate.by {by} go together")
            if chosen != (self.growth.monitor in monitors):
                raise ValueError(f"growth.monitor {self.growth.monitor} is no score of evaluate.by {self.evaluate.by}")
        if self.objective.local is not None and self.train.batch_size % 2:
            raise ValueError(f"objective.local pairs images: train.batch_size {self.train.batch_size} must be even")


# What `compat: published` means: the released code where it is well defined (specs in docs/decisions.md).
PUBLISHED: dict[str, Any] = {
    "train.schedule": "published",
    "train.finetune_epoch": 250,
    "cluster.recluster_after_growth": False,
    "growth.score": "abs_of_mean",
    "growth.select": "threshold",
    "optim.name": "adam",
}


# What may be said anew when a run is evaluated again: how its vectors are searched.
RESCORED = ("evaluate.gallery", "evaluate.exclude", "evaluate.rerank", "evaluate.scans")


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Return the checked configuration: defaults < file < SUBSPACE__ environment < overrides.

    Raises:
        UserError: anything wrong, in one sentence that names the key.
    """
    tree = read(path)
    for name, value in {**environment_overrides(dict(os.environ)), **parse_overrides(overrides or [])}.items():
        set_at(tree, name, value)
    if tree.get("compat") == "published":
        for name, value in PUBLISHED.items():
            if not is_set(tree, name):
                set_at(tree, name, value)
    return checked(tree, str(path))


def stored_config(run: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return what a run was started with: RUN/config.yaml has everything resolved, today's environment adds nothing.

    `overrides` go over it, of what says how a finished run is scored (RESCORED).

    Raises:
        UserError: it is missing or damaged, or an override is of something else.
    """
    path = run / "config.yaml"
    tree = read(path)
    for name, value in parse_overrides(list(overrides)).items():
        if not f"{name}.".startswith(tuple(f"{free}." for free in RESCORED)):
            raise UserError(f"'{short(name)}' cannot be changed for a run that exists, only {', '.join(RESCORED)}")
        set_at(tree, name, value)
    return checked(tree, str(path))


def checked(tree: dict[str, Any], where: str) -> RunConfig:
    """Return the configuration in `tree`, or raise a UserError whose one sentence names the first mistake."""
    return validated(RunConfig, tree, where)


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that `load_config` reads back to the same value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
