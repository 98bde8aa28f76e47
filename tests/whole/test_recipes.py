"""Losses that learn, masks, gates inside, ensembles, splits taken back: the same bytes on two ranks, after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import ROOT, content_hash, lines, steps, subspace

pytestmark = pytest.mark.slow
CONFIGS = ROOT / "configs" / "smoke"
RECIPES: dict[str, tuple[str, ...]] = {
    "proxies": (
        "objective.loss.name=ProxyAnchorLoss",
        "objective.miner.name=none",
        "objective.lr=0.02",
        "growth.select=top_fraction",
    ),
    "masks": ("growth.rule=doubling", "growth.double_every=1", "growth.max_subspaces=4", "growth.freeze_divided=true"),
    "trial": ("growth.accept=validated", "train.epochs=5"),
    "random miner": ("objective.loss.name=TripletMarginLoss", "objective.miner.name=DistanceWeightedMiner"),
    "mixed attention": (),
    "ensemble": (),
    "local": (),
    "masks of images": (),
    "shapes": (),
}
HAPPENED = {
    "proxies": ["growth", "recluster"],
    "masks": ["recluster", "recluster"],
    "trial": ["growth", "recluster", "rollback"],
    "random miner": ["growth", "recluster"],
    "mixed attention": [],
    "ensemble": [],
    "local": [],
    "masks of images": [],
    "shapes": [],
}
SUMS = ("masks", "ensemble", "local", "shapes")  # losses of several terms
OWN_IMAGES = ("masks of images", "shapes")


def run(digits: Path, folder: Path, recipe: str, nproc: int, *words: str, resume: str = "never") -> Path:
    own = CONFIGS / f"{recipe.replace(' ', '_')}.yaml"
    shards = folder.parent / "shards" if recipe in OWN_IMAGES else digits
    done = subspace(
        "train",
        own if own.exists() else CONFIGS / "growth.yaml",
        f"data.shards={shards}",
        "cluster.backend=local",
        "deterministic=true",
        *RECIPES[recipe],
        *words,
        f"--nproc={nproc}",
        f"--resume={resume}",
        "--run-dir",
        folder,
    )
    assert done.returncode in (0, 75), done.stderr
    return folder


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_ranks_and_stops_change_no_byte(digits: Path, tmp_path: Path, recipe: str) -> None:
    one = run(digits, tmp_path / "one", recipe, 1)
    two = run(digits, tmp_path / "two", recipe, 1, "--stop-after-step=7")
    assert len(steps(two)) == 7
    run(digits, two, recipe, 2, resume="must")
    assert content_hash(one) == content_hash(two)
    assert [line["loss"] for line in steps(one)] == [line["loss"] for line in steps(two)]
    for line in steps(one):
        assert "terms" not in line or sum(line["terms"].values()) == pytest.approx(line["loss"], rel=1e-5)
    assert ("terms" in steps(one)[0]) == (recipe in SUMS)
    told = [line["event"] for line in lines(one / "events.jsonl")]
    assert [event for event in told if event in ("growth", "rollback", "recluster")] == HAPPENED[recipe]
    if recipe == "masks":
        assert {line["subspace"] for line in steps(one)} == {0, 1, 2, 3}
