"""The runs of a comparison: a cell for every dataset, method and seed, its configuration checked, its folder looked at.

A cell's run is `subspace train` with the dataset's configuration and overrides, so anybody can repeat one by hand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from data_shards.errors import UserError
from launch import run_folder
from launch.compare.sweep_file import Sweep, needs
from launch.config import RunConfig, load_config
from launch.status import known_status


@dataclass(frozen=True)
class Cell:
    """One run: its place in the tables, its folder, and the words of `subspace train` that make it."""

    dataset: str
    method: str
    seed: int
    run: Path
    words: tuple[str, ...]
    config: RunConfig
    needs: tuple[str, ...] = ()  # names of cells whose runs this one starts from

    @property
    def name(self) -> str:
        return _name(self.dataset, self.method, self.seed)

    def state(self) -> str:
        """Return what became of the run so far: "new", or the state of its status.json."""
        return str(known_status(self.run).get("state", "new"))


def cells(sweep: Sweep, path: Path, out: Path, cores: int | None = None) -> list[Cell]:
    """Return all runs, those of a dataset together and every method's seeds in order; `path` is that of the sweep file.

    Where a configuration leaves `launch.threads` open and `cores` are given, these are shared out to the run's ranks.

    Raises:
        UserError: a configuration is missing or wrong, or a run folder was made with another one.
    """
    found = []
    for dataset, entry in sweep.datasets.items():
        base = path.parent / entry.config
        for method in sweep.methods:
            overrides = sweep.overrides(dataset, method)
            for seed in sweep.seeds:
                given = {name: _in_its_run(value, out / "runs" / dataset, seed) for name, value in overrides.items()}
                words = tuple(f"{name}={as_text(value)}" for name, value in given.items())
                cell = _cell(dataset, method, seed, base, words, out, cores)
                found.append(replace(cell, needs=tuple(_name(dataset, each, seed) for each in needs(overrides))))
    return found


def _name(dataset: str, method: str, seed: int) -> str:
    return f"{dataset} {method} seed {seed}"


def _in_its_run(value: Any, folder: Path, seed: int) -> Any:
    """Return "@METHOD/FILE" as that file of the method's run, every other value as it is."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    method, _, file = value[1:].partition("/")
    return str(folder / method / f"seed-{seed}" / file)


def _cell(
    dataset: str, method: str, seed: int, base: Path, words: tuple[str, ...], out: Path, cores: int | None
) -> Cell:
    run = out / "runs" / dataset / method / f"seed-{seed}"
    words = (*words, f"seed={seed}")
    try:
        config = load_config(base, list(words))
        if cores is not None and config.launch.threads is None:
            words = (*words, f"launch.threads={max(1, cores // config.launch.nproc)}")
            config = load_config(base, list(words))
    except UserError as error:
        raise _located(f"{dataset} {method}", error) from None
    if (run / "config.yaml").exists() and (changed := run_folder.difference(run, config)):
        raise UserError(
            f"{run} was made with another configuration: {changed}; give another --out, put the setting back, or"
            " remove that folder to have its run made again"
        )
    return Cell(dataset, method, seed, run, (os.path.relpath(base), "--resume", "auto", *words), config)


def _located(where: str, error: UserError) -> UserError:
    """Return the error with its place before it, and its own exit code."""
    located = UserError(f"{where}: {error}")
    located.exit_code = error.exit_code
    return located


def as_text(value: Any) -> str:
    """Return a value as it is written behind `section.key=`, which reads it back."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def check(found: list[Cell], split: str, build_shards: bool) -> None:
    """Build every part of what is still to be run, once per dataset and method; sums of shards are checked once.

    Raises:
        UserError: something cannot work; shards are missing and are not to be built.
    """
    from launch.train import check as check_run

    verified: set[str] = set()
    for cell in {(cell.dataset, cell.method): cell for cell in reversed(found)}.values():
        config, shards = cell.config, cell.config.data.shards
        if cell.needs:  # what it starts from may not be there yet
            config = config.model_copy(update={"model": config.model.model_copy(update={"weights": "random"})})
        try:
            if not build_shards and config.data.build is not None and not Path(shards).exists():
                _check_without_shards(config)
                continue
            if shards in verified:
                config = config.model_copy(update={"data": config.data.model_copy(update={"verify": False})})
            check_run(config, config.launch.nproc, build_shards)
            _check_split(config, split)
            verified.add(shards)
        except UserError as error:
            raise _located(f"{cell.dataset} {cell.method}", error) from None


def _check_without_shards(config: RunConfig) -> None:
    from launch import engines, networks, objective

    networks.check(config)
    objective.check_names(config)
    engines.check_world_size(config, config.launch.nproc)
    networks.model(config)
    objective.build_objective(config, num_classes=2)  # how many there will be changes shapes only


def _check_split(config: RunConfig, split: str) -> None:
    from data_shards.reader import open_shards

    if split == "test" and not open_shards(Path(config.data.shards), verify=False).manifest.counts.get("test"):
        raise UserError(f"split: {config.data.shards} has no test split; write 'split: auto' or 'split: validation'")
