"""What a run asks of Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.compare.on_ray import task_resources
from launch.config import RunConfig, checked
from launch.ray_room import NoRoom, check_node

NODES = [{"CPU": 4.0, "memory": 1.0}, {"CPU": 2.0, "GPU": 1.0}]


def config(ray: dict[str, Any], **launch: Any) -> RunConfig:
    return checked({"data": {"shards": "x"}, "launch": launch, "ray": ray}, str(Path("x")))


def test_ranks_times_threads() -> None:
    assert task_resources(config({})) == {"CPU": 1}
    assert task_resources(config({}, nproc=4, threads=3)) == {"CPU": 12}
    assert task_resources(config({"cpus_per_worker": 2, "gpus_per_worker": 0.5}, nproc=2)) == {"CPU": 4, "GPU": 1}


def test_one_node_must_hold_a_run() -> None:
    check_node({"CPU": 4}, NODES, "a run")
    check_node({"CPU": 2, "GPU": 1}, NODES, "a run")
    with pytest.raises(NoRoom, match=r"^a run: no node holds 4 CPU and 1 GPU, the nodes have 4 CPU and 0 GPU, 2 CPU"):
        check_node({"CPU": 4, "GPU": 1}, NODES, "a run")
