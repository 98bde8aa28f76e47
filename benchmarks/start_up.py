"""How long `subspace --help` and a dry run take, beside importing torch alone, which a dry run cannot do without.

subspace bench start_up --out docs/results/performance/start_up.json
"""

from __future__ import annotations

from benchmarks import timing  # isort: skip - first: it limits threads

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.random_shards import write_random_shards

ROOT = Path(__file__).parents[1]


def started(words: list[str], cpu: list[float]) -> Callable[[], None]:
    """Return what runs a command of Python to its end, and adds its CPU seconds to a list."""

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return run


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_random_shards(shards, (1000, 200), 10, 28, 1)
        train = ["-m", "launch", "train", "configs/compare/omniglot.yaml", f"data.shards={shards}", "--dry-run"]
        commands = {
            "subspace --help": ["-m", "launch", "--help"],
            "subspace train --dry-run": train,
            "import torch": ["-c", "import torch"],
            "python": ["-c", "pass"],
        }
        cpu: dict[str, list[float]] = {name: [] for name in commands}
        for words in commands.values():
            started(words, [])()  # files come from memory from now on
        ways = {name: started(words, cpu[name]) for name, words in commands.items()}
        wall = timing.interleaved(ways, repeats=5)
    found = {"wall": timing.compared(wall, "python"), "cpu": timing.compared(cpu, "python")}
    timing.write(out, found)


if __name__ == "__main__":
    main()
