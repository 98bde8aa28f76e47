"""What a command on a Ray node has in its environment."""

from __future__ import annotations

import os

from launch.ray_tasks import environment
from tests.runs import ROOT


def test_a_command_is_no_part_of_the_ray_that_starts_it() -> None:
    node = {"PATH": "/bin", "PYTHONPATH": "/site", "RAY_JOB_ID": "1", "RAY_RAYLET_PID": "2", "RAY_ADDRESS": "old:1"}
    node |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x", "CUDA_VISIBLE_DEVICES": "3"}
    found = environment(node, {"RAY_ADDRESS": "given:1", "SUBSPACE__SEED": "2"})
    assert found == {
        "PATH": "/bin",
        "PYTHONPATH": os.pathsep.join((str(ROOT), "/site")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "x",
        "CUDA_VISIBLE_DEVICES": "3",
        "RAY_ADDRESS": "given:1",
        "SUBSPACE__SEED": "2",
    }
