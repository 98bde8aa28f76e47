"""Sweep files: what they mean, and what is answered with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_shards.errors import UserError
from launch import networks
from launch.compare.cells import cells
from launch.compare.sweep_file import Sweep, read_sweep
from launch.objective import build_objective
from launch.yaml_file import read
from tests.launch.compare.make_sweep import write_sweep
from tests.runs import ROOT

SWEEPS = [path for path in sorted((ROOT / "configs" / "compare").glob("*.yaml")) if "methods" in read(path)]
ENTRY = {"config": "config.yaml"}


def sweep_of(folder: Path, **changes: Any) -> Sweep:
    return read_sweep(write_sweep(folder, **changes))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweeps_are_sound(path: Path, tmp_path: Path) -> None:
    sweep = read_sweep(path)
    found = cells(sweep, path, tmp_path)
    assert len(found) == len(sweep.datasets) * len(sweep.methods) * len(sweep.seeds)
    for cell in found:
        networks.check(cell.config)
        build_objective(cell.config, num_classes=5)


def test_defaults(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    tree = {"reference": "a", "datasets": {"d": ENTRY}, "methods": {"a": {}, "mml-2": {}, "mml-4": {}}}
    path.write_text(yaml.safe_dump(tree))
    sweep = read_sweep(path)
    assert sweep.seeds == (0, 1, 2)
    assert sweep.metrics == ("nmi", "ami", "recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "map_at_r")
    assert sweep.split == "auto"
    assert sweep.rivals() == ["mml-2", "mml-4"]
    assert (sweep.title("a"), sweep.name) == ("a", "compare")


def test_later_layers_are_set_last(tmp_path: Path) -> None:
    entry = {**ENTRY, "set": {"optim.lr": 1.0, "objective.loss": {"name": "x"}, "objective.loss.margin": 3}}
    entry["for"] = {"b": {"optim.lr": 3.0}}
    methods = {"a": {"objective.loss": {"name": "y"}}, "b": {"optim.lr": 2.0, "train.epochs": 4}}
    sweep = sweep_of(tmp_path, datasets={"d": entry}, methods=methods, reference="a", titles={})
    assert list(sweep.overrides("d", "a").items()) == [
        ("optim.lr", 1.0),
        ("objective.loss.margin", 3),
        ("objective.loss", {"name": "y"}),  # replaces the whole entry, the margin of the dataset too
    ]
    assert sweep.overrides("d", "b")["optim.lr"] == 3.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"refrence": "adsl"}, "unknown key 'refrence' (did you mean 'reference'?)"),
        ({"datasets": {"d": {"config": "c", "sett": {}}}}, "unknown key 'datasets.d.sett' (did you mean 'set'?)"),
        ({"claim": {"againts": []}}, "unknown key 'claim.againts' (did you mean 'against'?)"),
        ({"reference": "adls"}, "reference: there is no method 'adls' (did you mean 'adsl'?)"),
        (
            {"metrics": ["recall_at_3"]},
            "unknown metric 'recall_at_3' (did you mean 'recall_at_8'?); there are nmi, ami",
        ),
        ({"metrics": ["nmi", "nmi"]}, "'metrics' has a value twice"),
        ({"seeds": [1, 1]}, "'seeds' has a value twice"),
        ({"seeds": []}, "'seeds'"),
        ({"seeds": [-1]}, "'seeds.0'"),
        ({"seeds": "0,1"}, "'seeds'"),
        ({"datasets": {}}, "'datasets'"),
        ({"datasets": {"d": {}}}, "'datasets.d.config' is missing"),
        ({"datasets": {"d": {**ENTRY, "for": {"no": {}}}}}, "datasets.d.for: there is no method 'no'"),
        ({"methods": {"../up": {}}}, "'../up' names a folder"),
        ({"methods": {"adsl": {"seed": 3}}}, "methods: 'seed' is set by the list of seeds"),
        ({"methods": {"adsl": {"--run-dir": 3}}}, "'--run-dir' is not a setting"),
        ({"steps": ["no"]}, "steps: there is no method 'no'"),
        ({"steps": ["adsl"]}, "reference: adsl is a step"),
        (
            {"methods": {"adsl": {"model.weights": "@single/x"}, "single": {}}, "titles": {}},
            "methods.adsl: '@single/' must name a method further up",
        ),
        ({"titles": {"ads": "x"}}, "titles: there is no method or dataset 'ads' (did you mean 'adsl'?)"),
        ({"claim": {"against": ["none-*"]}}, "claim.against: no method is called none-*"),
        ({"split": "train"}, "'split'"),
        ({"name": "a/b"}, "'a/b' names a folder"),
        ({"methods": {f"m{i}": {} for i in range(6000)}, "reference": "m0", "titles": {}}, "more than 10,000 runs"),
        ({"titles": {"adsl": "a\nb"}}, "line break"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]], changes: dict[str, Any], said: str
) -> None:
    path = write_sweep(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        read_sweep(path)
    assert said in str(caught.value)
    code, _, error = cli("compare", path, "--out", tmp_path / "out")
    assert (code, error) == (2, f"subspace: {caught.value}\n")
    assert not (tmp_path / "out").exists()
