"""Clusters of recycled features, made beside the training: the same bytes for any number of ranks, and after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import ROOT, content_hash, events, subspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SETTINGS = (
    "cluster.backend=local",
    "cluster.features=recycled",
    "cluster.overlap=true",
    "deterministic=true",
    "train.steps_per_epoch=6",
    "train.epochs=5",
    "growth.max_subspaces=2",
)


def train(digits: Path, run: Path, nproc: int, *words: str) -> int:
    config = ROOT / "configs" / "smoke" / "growth.yaml"
    where = (f"data.shards={digits}", "--nproc", str(nproc), "--run-dir", run)
    return subspace("train", config, *SETTINGS, *where, *words, timeout_s=600).returncode


def test_ranks_and_a_stop_between_hand_over_and_use_change_nothing(digits: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(digits, whole, 2) == 0
    used = {event["epoch"]: event["version"] for event in events(whole, "recluster")}
    # Clusters of a new number of subspaces are waited for, all others are of the epoch before.
    grown = {event["epoch"] + 1 for event in events(whole, "growth")}
    assert used
    assert all(version == epoch - (epoch not in grown) for epoch, version in used.items())
    assert any(version < epoch for epoch, version in used.items())
    assert train(digits, stopped, 2, "--stop-after-step", "20") == 75
    assert train(digits, stopped, 1, "--resume", "must") == 0
    assert content_hash(stopped) == content_hash(whole)
    beside = tmp_path / "beside"  # each rank keeps its features, and sums go through a coordinator on Ray
    assert train(digits, beside, 2, "cluster.backend=ray", "cluster.placement=ranks") == 0
    assert content_hash(beside) == content_hash(whole)
