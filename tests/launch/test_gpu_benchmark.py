"""The benchmark of a GPU: that it works without one and says so, and what it makes of clocks and of memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from launch.bench import run_benchmark

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_without_a_gpu_it_is_a_check_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_benchmark("gpu", tmp_path / "gpu.json") == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (found["device"]["name"], found["quick"]) == ("cpu", True)
    assert "no CUDA device" in found["note"]
    (training,), (clustering,), (scores,) = (found[part] for part in ("training", "kmeans", "scores"))
    assert set(training["images_per_s"]) == {"ours", "ours, batch stays", "bare", "input alone"}
    assert clustering["labels_equal"]["torch"] > 0.999
    assert "left out" in clustering["faiss"]
    assert scores["values"]["num_samples"] == 1000


def test_shares_of_an_epoch_are_of_rounds() -> None:
    wall = {
        "ours": [10.0, 20.0, 10.0],
        "ours, batch stays": [9.0, 18.0, 6.0],
        "bare": [8.0, 16.0, 5.0],
        "input alone": [4.0, 9.0, 9.0],
    }
    found = gpu.shares(wall)
    assert found["fraction_reached"] == [0.8, 0.5, 0.8]
    assert found["share_not_hidden"] == [0.2, 0.2, 0.5]
    assert found["share_of_input"] == [0.1, 0.1, 0.4]
    assert found["share_of_all_else"] == [0.1, 0.1, 0.1]
    assert found["bound"] == "input"


def test_memory_is_what_came_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a device that is made up: 1000 MB, of which tensors have 100 and 300 are taken before."""
    taken = {"allocated": 100e6, "most": 100e6, "free": 700e6}
    names = ("synchronize", "empty_cache", "reset_peak_memory_stats")
    for name in names:
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: taken["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: taken["most"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (taken["free"], 1000e6))

    def way() -> None:
        taken.update(most=250e6, free=450e6)

    assert gpu.peak_mb(way, CUDA) == {"allocated": 150.0, "device": 250.0}


def test_on_a_cpu_there_is_no_memory_to_tell_but_the_way_runs() -> None:
    ran: list[int] = []
    assert gpu.peak_mb(lambda: ran.append(1), CPU) == {"allocated": None, "device": None}
    assert ran == [1]


def test_plain_lloyd_finds_the_groups() -> None:
    rows = np.repeat(np.eye(3, 8, dtype=np.float32), 40, axis=0)
    rows += 0.01 * np.random.default_rng(0).standard_normal(rows.shape, dtype=np.float32)
    labels = gpu.torch_lloyd(rows, rows[[0, 40, 80]].copy(), 5, CPU)
    assert labels.tolist() == np.repeat(np.arange(3), 40).tolist()


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "clusterings", broken)
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "gpu.json"), "--quick", "--only", "kmeans", "scores"])
    assert gpu.main() == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["kmeans"] == [{"failed": "RuntimeError: out of memory"}]
    assert found["scores"][0]["vectors"] == 1000
