"""A new user's path, by the clock: a fresh clone, an environment of its own, every command of the tutorial.

Needs the network, or what pip has in its stead, for the installation. One pass: seconds of each command.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import write
from tests.docs.tutorial import Step, run, steps

ROOT = Path(__file__).parents[1]


def timed(name: str, words: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run one command of the installation; return what it was and its seconds."""
    began = time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    return {"command": name, "seconds": round(time.perf_counter() - began, 1)}


def typed(step: Step, folder: Path, environment: dict[str, str], python: str) -> dict[str, Any]:
    """Run one block of the tutorial; return its first line and its seconds."""
    began = time.perf_counter()
    run(step, folder, environment, python)
    first = step.code.strip().splitlines()[0] if step.kind == "sh" else "python"
    return {"command": first, "seconds": round(time.perf_counter() - began, 1)}


def main(out: Path | None) -> None:
    """Clone, install, type the tutorial; print and write the seconds."""
    unset = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "subspace"
        found = [timed("git clone", ["git", "clone", "--quiet", str(ROOT), str(clone)], ROOT, environment)]
        found.append(timed("make venv", ["make", "venv", f"PYTHON={sys.executable}"], clone, environment))
        binaries = clone / ".venv" / "bin"
        environment["PATH"] = os.pathsep.join([str(binaries), environment["PATH"]])
        for step in steps((clone / "docs" / "tutorial.md").read_text()):
            found.append(typed(step, clone, environment, str(binaries / "python")))
    installed = sum(each["seconds"] for each in found[:2])
    total = sum(each["seconds"] for each in found)
    write(out, {"total_s": round(total, 1), "after_installation_s": round(total - installed, 1), "commands": found})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
