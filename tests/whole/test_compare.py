"""A comparison of real runs: stopped, killed, gone on with, and asked for something else."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.ray_cluster import RayCluster
from tests.runs import ROOT, assert_nothing_left, disturbed, status, steps, subspace, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
METHODS: dict[str, Any] = {"adsl": {"growth.enabled": True, "model.num_subspaces": 1}, "mml-3": {}}
NAMES = [f"digits/{method}/seed-{seed}" for method in METHODS for seed in (0, 1)]


def write_sweep(folder: Path, digits: Path, seeds: tuple[int, ...] = (0, 1), **settings: Any) -> Path:
    """Write a sweep of runs that take seconds, but for what `settings` add."""
    quick = {"train.epochs": 2, "train.finetune_epoch": None, "train.steps_per_epoch": 6, "launch.threads": 1}
    entry = {"config": str(ROOT / "configs/smoke/fixed.yaml"), "set": {**quick, "data.shards": str(digits), **settings}}
    tree = {"reference": "adsl", "seeds": list(seeds), "datasets": {"digits": entry}, "methods": METHODS}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def kept(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()


def test_stopped_killed_and_gone_on_with(digits: Path, tmp_path: Path) -> None:
    path, out = write_sweep(tmp_path, digits, **{"train.steps_per_epoch": 60}), tmp_path / "out"
    first, second, third, fourth = (out / "runs" / name for name in NAMES)
    words: list[str | Path] = ["compare", path, "--out", out]

    def in_the_middle_of(run: Path, number: int) -> Any:
        def disturb(process: psutil.Process) -> None:
            wait_until(lambda: len(steps(run)) > 5, f"steps of {run}")
            process.send_signal(number)

        return disturb

    assert disturbed(words, in_the_middle_of(first, signal.SIGTERM)) == 75
    assert status(first)["state"] == "preempted"
    assert not second.exists()
    assert not (out / "compare.md").exists()

    assert disturbed(words, in_the_middle_of(second, signal.SIGKILL)) == -signal.SIGKILL
    assert_nothing_left()
    assert status(first)["state"] == "completed"
    before = kept(first)

    done = subspace(*words, timeout_s=400)
    assert done.returncode == 0, done.stderr
    assert "1 of 4 runs are complete already" in done.stderr
    assert kept(first) == before
    for run in (first, second, third, fourth):
        assert [line["step"] for line in steps(run)] == list(range(1, 121))
    assert "| adsl | " in done.stdout
    tree = json.loads((out / "compare.json").read_text())
    for run, name in zip(tree["runs"], NAMES, strict=True):
        scores = json.loads((out / "runs" / name / "evaluation/test.json").read_text())
        del scores["class_names"]
        assert run["evaluations"]["test"] == scores
    (block,) = tree["tables"]
    difference = block["rows"][1]["differences"]["recall_at_1"]
    assert difference["low"] <= difference["difference"] <= difference["high"]

    write_sweep(tmp_path, digits, **{"train.steps_per_epoch": 61})
    done = subspace(*words)
    assert done.returncode == 2
    assert "was made with another configuration: train.steps_per_epoch was 60, now 61" in done.stderr


def test_a_run_that_fails_leaves_the_others_alone_two_at_a_time(digits: Path, tmp_path: Path) -> None:
    path, out = write_sweep(tmp_path, digits, seeds=(0,)), tmp_path / "out"
    tree = yaml.safe_load(path.read_text())
    tree["methods"]["explodes"] = {"optim.name": "sgd", "optim.lr": 1e6, "optim.weight_decay": 1e6}
    path.write_text(yaml.safe_dump(tree))
    done = subspace("compare", path, "--out", out, "--parallel", "2")
    assert done.returncode == 70
    assert "failed: digits explodes seed 0: " in done.stderr
    assert status(out / "runs/digits/explodes/seed-0")["exit_code"] == 4
    assert {status(out / "runs/digits" / method / "seed-0")["state"] for method in METHODS} == {"completed"}
    assert "- digits explodes seed 0: " in done.stdout


@pytest.mark.site
def test_on_a_ray_cluster_with_the_actors_of_the_runs_on_it(digits: Path, tmp_path: Path) -> None:
    path, out = write_sweep(tmp_path, digits, seeds=(0,), **{"cluster.backend": "ray"}), tmp_path / "out"
    cluster = RayCluster(num_nodes=2, cpus_per_node=1)
    try:
        variables = {**cluster.variables, "RAY_ADDRESS": cluster.gcs_address}
        done = subspace("compare", path, "--out", out, "--ray", timeout_s=400, variables=variables)
        assert done.returncode == 0, done.stderr
        for method in METHODS:
            run = out / "runs/digits" / method / "seed-0"
            assert status(run)["state"] == "completed"
            assert not (run / ".ray_token").exists()  # no Ray of its own
        write_sweep(tmp_path, digits, seeds=(0, 1), **{"cluster.backend": "ray", "launch.threads": 3})
        done = subspace("compare", path, "--out", out, "--ray", variables=variables)
        assert done.returncode == 2
        assert "digits adsl seed 1: no node holds 3 CPU, the nodes have" in done.stderr
    finally:
        cluster.close()


@pytest.mark.site
def test_tasks_of_a_local_ray_save_when_they_are_stopped(digits: Path, tmp_path: Path) -> None:
    path, out = write_sweep(tmp_path, digits, seeds=(0,), **{"train.steps_per_epoch": 400}), tmp_path / "out"
    run = out / "runs/digits/adsl/seed-0"

    def stop(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) > 5, "steps")
        process.send_signal(signal.SIGTERM)

    assert disturbed(["compare", path, "--out", out, "--ray"], stop) == 75
    assert status(run)["state"] == "preempted"
    assert 5 < status(run)["step"] < 800
    assert not (out / ".ray_token").exists()
    assert_nothing_left()
