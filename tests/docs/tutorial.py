"""docs/tutorial.md as a program: its blocks in order, run in a folder, their outputs compared or written back.

    python -m tests.docs.tutorial        # run it in a folder of its own, write the outputs into the page

A block `sh` or `python` is a step; a block `text` right behind it is what the step prints. Where the reader has
activated `.venv`, commands run with this interpreter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
PICTURE = ROOT / "docs" / "images" / "tutorial-found.png"
BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One block to run: "sh" or "python", its code, the output that the page shows (None: it shows none)."""

    kind: str
    code: str
    shown: str | None


def steps(text: str) -> list[Step]:
    """Return the blocks of a page that are run."""
    blocks = [(match["kind"], match["body"]) for match in BLOCK.finditer(text)]
    found = []
    for (kind, body), (next_kind, next_body) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind in ("sh", "python"):
            found.append(Step(kind, body, next_body if next_kind == "text" else None))
    return found


def prepared(folder: Path) -> dict[str, str]:
    """Make `folder` a place to type in: with the configurations, `subspace` on the path; return the environment."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "bin").mkdir()
    command = folder / "bin" / "subspace"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_WAIT_POLICY": "passive"}


def run(step: Step, folder: Path, environment: dict[str, str], python: str = sys.executable) -> str:
    """Run one block in `folder`; return what it prints, on both streams.

    Raises:
        AssertionError: it failed.
    """
    words = ["sh", "-ec", step.code] if step.kind == "sh" else [python, "-c", step.code]
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{step.code}\n{done.stdout}"
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n" if done.stdout else ""


def skeleton(output: str) -> list[str]:
    """Return the words of an output: without numbers, frames, and what depends on the machine and its pace."""
    lines = [line for line in output.splitlines() if not re.search(r"step \d+/\d+", line)]
    words = re.findall(r"[^\W\d_]{2,}", " ".join(lines))
    return [word for word in words if word not in ("min", "cpu", "cuda")]


def filled(text: str, outputs: Iterator[str]) -> str:
    """Return the page with the given outputs in the place of those that it shows."""
    waiting: str | None = None

    def block(match: re.Match[str]) -> str:
        nonlocal waiting
        if match["kind"] in ("sh", "python"):
            waiting = next(outputs)
            return match[0]
        shown = waiting if match["kind"] == "text" else None
        waiting = None
        return match[0] if shown is None else f"```text\n{shown}```"

    return BLOCK.sub(block, text)


def main() -> None:
    """Run the page and write what it printed into it."""
    text = PAGE.read_text()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = prepared(folder)
        outputs = []
        for step in steps(text):
            print(step.code, flush=True)
            outputs.append(run(step, folder, environment))
        PAGE.write_text(filled(text, iter(outputs)))
        shutil.copyfile(folder / "found.png", PICTURE)


if __name__ == "__main__":
    main()
