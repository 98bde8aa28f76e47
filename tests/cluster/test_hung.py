"""What is killed and what is not, and that no wait of ours is without a deadline; real hung actors: test_actors.py."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.hung import kill_actor_process
from tests.runs import ROOT, wait_until

SLEEPER = """
import sys, time
from cluster.processes import dump_stacks_on_signal
dump_stacks_on_signal(sys.argv[1], "sleeper")
print("here", flush=True)
time.sleep(600)
"""


def sleeper(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLEEPER, str(folder), "ray::SomeActor"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    return process


def test_actor_is_killed_after_its_stacks_and_another_class_is_not(tmp_path: Path) -> None:
    process = sleeper(tmp_path / "logs")
    kill_actor_process(process.pid, "OtherActor")
    assert process.poll() is None
    kill_actor_process(process.pid, "SomeActor")
    wait_until(lambda: process.poll() is not None, "the end of the actor", 30)
    assert 'File "<string>", line' in (tmp_path / "logs" / "stacks-sleeper.txt").read_text()
    kill_actor_process(process.pid, "SomeActor")  # it is gone: nothing to do


def test_without_a_folder_the_signal_is_ignored(tmp_path: Path) -> None:
    process = sleeper(tmp_path / "no" / "such" / "logs")
    kill_actor_process(process.pid, "SomeActor")
    wait_until(lambda: process.poll() is not None, "the end of the actor", 30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [*(ROOT / "cluster").glob("*.py"), ROOT / "launch" / "services.py"], ids=str)
def test_every_wait_for_ray_has_a_deadline(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.get", "ray.wait"):
            assert any(keyword.arg == "timeout" for keyword in node.keywords), f"{path.name}:{node.lineno}"
