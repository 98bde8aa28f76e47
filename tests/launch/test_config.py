"""Configurations: overrides in both dialects, precedence, one-sentence errors, no heavy imports, round trip."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import UserError
from launch.cli import gathered_overrides
from launch.config import PUBLISHED, checked, dump_config, load_config, stored_config
from launch.objective import build_objective
from launch.yaml_file import parse, read
from tests.runs import ROOT

MINIMAL = {"data": {"shards": "x"}}
SWEEPS = [path for path in sorted((ROOT / "configs" / "compare").glob("*.yaml")) if "methods" in read(path)]
CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path not in SWEEPS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_survives_a_round_trip(path: Path) -> None:
    config = load_config(path)
    assert checked(parse(dump_config(config), "it"), "again") == config


def readme_recipes() -> list[list[str]]:
    """Return the settings of README's table of recipes, every alternative of a row as a list of its own."""
    table = (ROOT / "README.md").read_text().partition("## Recipes")[2].partition("\n\n`configs")[0]
    found: list[list[str]] = []
    for row in table.splitlines():
        choices: dict[str, list[str]] = {}
        for word in (word for span in re.findall(r"`([^`]+)`", row) for word in shlex.split(span)):
            key, equals, value = word.partition("=")
            if equals:
                choices.setdefault(key, []).append(value.replace("K", "4"))
            elif word.startswith("{"):  # another value of the setting before it
                choices[next(reversed(choices))].append(word)
        found += [
            [f"{key}={value}" for key, value in zip(choices, values, strict=True)]
            for values in itertools.product(*choices.values())
            if values
        ]
    return found


@pytest.mark.parametrize("path", ["demo", "adsl/isic19", "compare/ham10000"])
@pytest.mark.parametrize("overrides", readme_recipes(), ids=" ".join)
def test_every_recipe_of_the_readme_works_over_any_configuration(path: str, overrides: list[str]) -> None:
    build_objective(load_config(ROOT / "configs" / f"{path}.yaml", overrides), 8, torch.device("cpu"))


def write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_overrides_beat_environment_beats_file_beats_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {**MINIMAL, "optim": {"lr": 0.1, "weight_decay": 0.1}, "train": {"epochs": 7}})
    monkeypatch.setenv("SUBSPACE__OPTIM__LR", "0.2")
    monkeypatch.setenv("SUBSPACE__OPTIM__WEIGHT_DECAY", "0.2")
    config = load_config(path, ["optim.lr=0.3"])
    assert (config.optim.lr, config.optim.weight_decay, config.train.epochs, config.seed) == (0.3, 0.2, 7, 0)


def test_both_dialects_reach_the_parser_as_one() -> None:
    words = ["train", "c.yaml", "--optim.lr", "1e-4", "--train.epochs=3", "x.y=1", "--nproc", "2", "--run-dir", "a.b"]
    assert gathered_overrides(words) == [
        *("train", "c.yaml", "--nproc", "2", "--run-dir", "a.b"),
        *("--overrides", "optim.lr=1e-4", "train.epochs=3", "x.y=1"),
    ]
    with pytest.raises(UserError, match=r"--optim\.lr needs a value"):
        gathered_overrides(["--optim.lr"])


def test_published_sets_what_is_not_set(tmp_path: Path) -> None:
    tree = {**MINIMAL, "compat": "published", "growth": {"score": "mean_of_abs"}, "train": {"epochs": 300}}
    config = load_config(write(tmp_path, tree))
    assert config.growth.score == "mean_of_abs"
    assert (config.train.schedule, config.train.finetune_epoch) == ("published", 250)
    assert config.cluster.recluster_after_growth is False
    assert set(PUBLISHED) >= {"train.schedule", "cluster.recluster_after_growth"}


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "-x", "", "a b", "ä", "x" * 101, "a\\b", "con\tx"])
def test_a_name_must_do_as_a_folder(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        checked({**MINIMAL, "name": name}, "it")


def test_an_age_needs_features_that_age() -> None:
    with pytest.raises(UserError, match=r"max_age.* needs cluster\.features recycled"):
        checked({**MINIMAL, "cluster": {"max_age": 8}}, "it")
    assert checked({**MINIMAL, "cluster": {"max_age": 8, "features": "recycled"}}, "it").cluster.max_age == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "inf"])
def test_numbers_are_finite(value: object) -> None:
    with pytest.raises(UserError, match=r"optim\.lr.* finite number"):
        checked({**MINIMAL, "optim": {"lr": value}}, "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from(["data", "model", "train", "optim", "cluster", "growth", "evaluate", "launch", "ray", "x"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(SECTIONS, JSON, max_size=4))
def test_anything_is_accepted_or_refused_in_one_sentence(tree: dict) -> None:
    try:
        config = checked(tree, "fuzz")
    except UserError as error:
        assert error.exit_code == 2
        assert str(error).startswith("fuzz: ")
    else:
        assert checked(parse(dump_config(config), "it"), "again") == config


def test_a_configuration_error_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from launch.cli import main\n"
        "try: main(['train', sys.argv[1], 'train.epochz=3'])\n"
        "except SystemExit as left: print(left.code, sorted({'torch', 'ray', 'faiss', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "configs" / "demo.yaml")], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "2 []", done.stderr
    assert "epochs" in done.stderr


def test_a_stored_configuration_is_not_changed_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", ["optim.lr=0.5"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    monkeypatch.setenv("SUBSPACE__OPTIM__LR", "0.25")
    assert stored_config(tmp_path) == config
    assert load_config(tmp_path / "config.yaml").optim.lr == 0.25
