"""What a comparison is: datasets, methods as overrides of their configurations, seeds. One YAML file, checked at once.

A run's settings come in this order, the later ones winning: the dataset's configuration, its `set`, the method, the
dataset's `for` of that method, the seed.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data_shards.errors import nearest_of
from launch.config import SAFE_NAME
from launch.mistakes import validated
from launch.plain_values import short
from launch.sections import Section
from launch.yaml_file import read

Retrieval = Literal["recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r", "r_precision"]
Metric = Literal["nmi", "ami", "macro_recall_at_1", Retrieval, "dice", "iou"]


def _check_metrics(metrics: Any) -> Any:
    known = [*get_args(Metric)]
    for metric in metrics if isinstance(metrics, (list, tuple)) else ():
        if isinstance(metric, str) and metric not in known:
            guess = nearest_of(metric, known)
            raise ValueError(f"unknown metric '{short(metric)}'{guess}; there are {', '.join(known)}")
    return metrics


Metrics = Annotated[tuple[Metric, ...], BeforeValidator(_check_metrics)]
Overrides = dict[str, Any]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
MAX_RUNS = 10_000
_SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_DEFAULT: tuple[Metric, ...] = ("nmi", "ami", "recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r")


def _check_overrides(overrides: Overrides) -> Overrides:
    for name in overrides:
        if not _SETTING.fullmatch(name):
            raise ValueError(f"'{short(name)}' is not a setting: write section.key")
        if name == "seed":
            raise ValueError("'seed' is set by the list of seeds")
    return overrides


class DatasetEntry(Section):
    """A dataset: its configuration and what differs from it."""

    config: str = Field(description="path of a configuration, relative to the sweep file")
    settings: Overrides = Field(default_factory=dict, alias="set")
    per_method: dict[str, Overrides] = Field(default_factory=dict, alias="for")

    @field_validator("settings")
    @classmethod
    def _settings_are_overrides(cls, value: Overrides) -> Overrides:
        return _check_overrides(value)

    @field_validator("per_method")
    @classmethod
    def _all_are_overrides(cls, value: dict[str, Overrides]) -> dict[str, Overrides]:
        return {name: _check_overrides(overrides) for name, overrides in value.items()}


class Claim(Section):
    """Whether the reference keeps up with the best of some methods, without being chosen among as many."""

    against: tuple[str, ...] = ("mml*",)
    metrics: Metrics = ("nmi", "recall_at_1")


class Sweep(Section):
    """A whole comparison; the order of `methods` is that of the rows."""

    name: str = "compare"
    reference: str
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    metrics: Metrics = Field(_DEFAULT, min_length=1)
    split: Literal["auto", "validation", "test"] = "auto"
    datasets: dict[str, DatasetEntry] = Field(min_length=1)
    methods: dict[str, Overrides] = Field(min_length=1)
    steps: tuple[str, ...] = Field((), description="methods that others start from and that are not in the tables")
    titles: dict[str, str] = Field(default_factory=dict)
    claim: Claim = Claim()

    @field_validator("methods")
    @classmethod
    def _methods_are_overrides(cls, value: dict[str, Overrides]) -> dict[str, Overrides]:
        return {name: _check_overrides(overrides) for name, overrides in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        methods, datasets = list(self.methods), list(self.datasets)
        for name in (self.name, *methods, *datasets):
            if not SAFE_NAME.fullmatch(name):
                raise ValueError(f"{short(repr(name))} names a folder: use up to 100 letters, digits and . _ + = -")
        _known(self.reference, methods, "reference", "method")
        for dataset, entry in self.datasets.items():
            for method in entry.per_method:
                _known(method, methods, f"datasets.{dataset}.for", "method")
        for name in self.steps:
            _known(name, methods, "steps", "method")
        if self.reference in self.steps:
            raise ValueError(f"reference: {self.reference} is a step, which the tables leave out")
        for place, (method, overrides) in enumerate(self.methods.items()):
            for needed in needs(overrides):
                if needed not in methods[:place]:
                    raise ValueError(f"methods.{method}: '@{short(needed)}/' must name a method further up")
        for name in self.titles:
            _known(name, [*methods, *datasets], "titles", "method or dataset")
        for key in ("seeds", "metrics"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"'{key}' has a value twice")
        if "claim" in self.model_fields_set and not self.rivals():
            raise ValueError(f"claim.against: no method is called {' or '.join(self.claim.against)}")
        if len(methods) * len(datasets) * len(self.seeds) > MAX_RUNS:
            raise ValueError(f"more than {MAX_RUNS:,} runs")
        return self

    def compared(self) -> list[str]:
        """Return the methods of the tables, in their order."""
        return [method for method in self.methods if method not in self.steps]

    def rivals(self) -> list[str]:
        """Return the methods that the claim is about, the reference aside."""
        matching = (m for m in self.methods if any(fnmatchcase(m, pattern) for pattern in self.claim.against))
        return [method for method in matching if method != self.reference]

    def title(self, name: str) -> str:
        """Return how a method or dataset is called in tables."""
        return self.titles.get(name, name)

    def overrides(self, dataset: str, method: str) -> Overrides:
        """Return what is set on top of a dataset's configuration, in the order in which it is to be set."""
        entry = self.datasets[dataset]
        merged: Overrides = {}
        for layer in (entry.settings, self.methods[method], entry.per_method.get(method, {})):
            for name, value in layer.items():
                merged.pop(name, None)  # set last, after what an earlier layer sets below or above it
                merged[name] = value
        return merged


def needs(overrides: Overrides) -> list[str]:
    """Return the methods whose runs a method starts from: values "@METHOD/..." are files of that method's run folder,
    of the same dataset and seed."""
    values = [value for value in overrides.values() if isinstance(value, str) and value.startswith("@")]
    return [value[1:].partition("/")[0] for value in values]


def _known(name: str, choices: list[str], where: str, what: str) -> None:
    if name not in choices:
        raise ValueError(f"{where}: there is no {what} '{short(name)}'{nearest_of(name, choices)}")


def read_sweep(path: Path) -> Sweep:
    """Return the checked sweep.

    Raises:
        UserError: anything wrong, in one sentence that names the key.
    """
    return validated(Sweep, read(path), str(path))
