"""The final scores of splits: galleries, exclusion and re-ranking, on one rank and on two, and `subspace evaluate`."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from data_shards.build import build as build_shards
from data_shards.errors import UserError
from launch import build, networks
from launch.config import checked, stored_config
from launch.scoring import protocols, score_splits
from tests.launch.best_run import best_run
from tests.ranks import run_on_ranks
from trainer.metrics.reranking import KReciprocal

Cli = Callable[..., tuple[int, str, str]]
SIZE = 32
OVERRIDES = ["evaluate.gallery=[leave_one_out, train]", "evaluate.rerank={name: k_reciprocal, k1: 8}"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "phantoms"
    build_shards("phantoms", folder, size=SIZE, options={"num_samples": 90, "label_by": "colour", "levels": 3})
    return folder


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    return best_run(tmp_path / "run", shards, SIZE, evaluate={"batch_size": 16, "nmi_seeds": 1})


def scored(run: Path) -> dict[str, Any]:
    """Return the scores of validation and test, as a rank of any number."""
    config = stored_config(run, OVERRIDES)
    _, train, validation, test = build.open_splits(config)
    assert test is not None
    return score_splits(
        config, run, networks.model(config), build.fresh_state(config).partition, train, [validation, test]
    )


def test_two_ranks_give_the_scores_of_one(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, other := tmp_path / "other")
    (alone,) = run_on_ranks(scored, 1, run)
    leader, follower = run_on_ranks(scored, 2, other)
    assert alone == leader
    assert follower == {"validation": {}, "test": {}}
    for name in ("test.json", "validation.json"):
        assert (run / "evaluation" / name).read_bytes() == (other / "evaluation" / name).read_bytes()
    galleries = [(each["gallery"], each["rerank"]) for each in alone["test"]["protocols"]]
    assert galleries == [(g, r) for g in ("leave_one_out", "train") for r in ("none", "k_reciprocal")]
    first = alone["test"]["protocols"][0]
    assert {name: alone["test"][name] for name in ("recall", "map_at_r", "num_lone_queries", "exclude")} == {
        name: first[name] for name in ("recall", "map_at_r", "num_lone_queries", "exclude")
    }
    assert alone["test"]["protocols"][2]["num_gallery"] == len(build.open_splits(stored_config(run))[1])


def test_evaluate_takes_protocols_and_prints_which_they_are(run: Path, cli: Cli) -> None:
    words = ("evaluate", run, "--split", "test", "evaluate.gallery=train", "evaluate.rerank=query_expansion")
    code, out, _ = cli(*words, "evaluate.scans=true", "--json")
    assert code == 0
    found = json.loads(out)
    assert [(each["gallery"], each["rerank"]) for each in found["protocols"]] == [
        ("train", "none"),
        ("train", "query_expansion"),
    ]
    assert found["protocols"][0]["scans"]["eta_p"] == pytest.approx(found["protocols"][0]["recall"]["1"])
    assert json.loads((run / "evaluation/test.json").read_text()) == found
    code, out, _ = cli(*words)
    assert code == 0
    assert "leave-one-out" in out
    assert "query-expansion" in out
    assert "training images" in out
    code, out, _ = cli("evaluate", run)
    assert code == 0
    assert "training" not in out


def test_leaving_scans_out_is_said_and_counted(run: Path, cli: Cli) -> None:
    """Phantoms are not cut from anything, so nothing but the image itself is left out."""
    plain = json.loads(cli("evaluate", run, "--json")[1])
    code, out, _ = cli("evaluate", run, "evaluate.exclude=scan", "--json")
    assert code == 0
    assert {**plain, "exclude": "scan", "protocols": 0} == {**json.loads(out), "protocols": 0}
    assert "without patches of its own scan" in cli("evaluate", run, "evaluate.exclude=scan")[1]
    asked = load_file(run / "evaluation/validation.safetensors")["asked"]
    assert np.all(asked == 1)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("evaluate.nmi_seeds=3", "cannot be changed for a run that exists, only evaluate.gallery, evaluate.exclude"),
        ("optim.lr=1", "cannot be changed"),
        ("evaluate.gallery=[]", "evaluate.gallery"),
        ("evaluate.gallery=validation", "evaluate.gallery"),
        ("evaluate.gallery=[{a: b}]", "evaluate.gallery"),
        ("evaluate.exclude=patient", "evaluate.exclude"),
        ("evaluate.rerank=reciprocal", "did you mean 'k_reciprocal'?"),
        ("evaluate.rerank={name: k_reciprocal, k3: 1}", "has no such argument"),
        ("evaluate.rerank={name: k_reciprocal, k2: 30}", "k1 must be k2 or more"),
        ("evaluate.rerank={name: none, k1: 3}", "has no such argument"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(run: Path, cli: Cli, word: str, part: str) -> None:
    code, out, err = cli("evaluate", run, word)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert part in err
    assert not out


def test_a_split_in_which_nothing_can_be_found_is_refused_before_anything_starts(tmp_path: Path, cli: Cli) -> None:
    """Each class is one patient."""
    rows = ["path,label,group,split"]
    for split, label, i in itertools.product(("train", "validation"), ("a", "b"), range(2)):
        name = f"{split}-{label}{i}.png"
        Image.new("RGB", (16, 16)).save(tmp_path / name)
        rows.append(f"{name},{label},{split}-{label},{split}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    build_shards(f"table:{tmp_path / 'table.csv'}", tmp_path / "shards", size=16)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"data": {"shards": str(tmp_path / "shards")}, "evaluate": {"exclude": "group"}}))
    code, _, err = cli("train", config, "--dry-run")
    assert code == 2
    assert "the validation split has another one of its class to find that evaluate.exclude group" in err


def test_protocols_of_a_configuration() -> None:
    tree = {"data": {"shards": "x"}, "evaluate": {"gallery": ["train", "train"], "rerank": {"name": "k_reciprocal"}}}
    found = protocols(checked(tree, "it"))
    assert (found.galleries, found.reranking) == (("train",), ("k_reciprocal", KReciprocal()))
    assert protocols(checked({"data": {"shards": "x"}}, "it")).reranking is None
    with pytest.raises(UserError, match=r"unknown key 'evaluate.exclude_groups' \(did you mean 'exclude'\?\)"):
        checked({"data": {"shards": "x"}, "evaluate": {"exclude_groups": True}}, "it")
