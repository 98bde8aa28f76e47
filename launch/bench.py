"""Find and run the benchmarks: every file of the checkout's folder benchmarks/ that has a `main`.

They are not part of an installed distribution: they compare with libraries that nothing else here needs.
"""

from __future__ import annotations

import ast
import difflib
import os
import subprocess
import sys
from pathlib import Path

from data_shards.errors import UserError

FOLDER = Path(__file__).parents[1] / "benchmarks"


def listed(folder: Path = FOLDER) -> list[tuple[str, str]]:
    """Return name and first sentence of every benchmark.

    Raises:
        UserError: this is no checkout.
    """
    if not folder.is_dir():
        raise UserError("there are no benchmarks here: they come with the source, not with the installed package")
    found = []
    for file in sorted(folder.glob("*.py")):
        module = ast.parse(file.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            about = " ".join((ast.get_docstring(module) or "").split("\n\n")[0].split())
            found.append((file.stem, about))
    return found


def run_benchmark(name: str, out: Path | None = None, folder: Path = FOLDER) -> int:
    """Run a benchmark in a process of its own, with this interpreter; return its exit code.

    Raises:
        UserError: there is no such benchmark.
    """
    names = [each for each, _ in listed(folder)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}"
        raise UserError(f"there is no benchmark '{name}'; {hint}")
    words = [sys.executable, str(folder / f"{name}.py"), *([str(out.resolve())] if out else [])]
    paths = [str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(words, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}).returncode
