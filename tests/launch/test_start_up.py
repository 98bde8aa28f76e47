"""What a command imports before it does anything: told by names, since times depend on the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.runs import ROOT, environment

HEAVY = ("torch", "ray", "faiss", "numpy", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "PIL")


def imported(*words: str | Path) -> set[str]:
    """Return which heavy modules a command has imported when it ends."""
    code = (
        "import sys; from launch.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"except SystemExit: print('imported', *[name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    words = (sys.executable, "-c", code, *map(str, words))
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=120)
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "imported", done.stderr
    return set(last[1:])


def test_help_needs_none_of_the_heavy_libraries() -> None:
    assert imported("--help") == set()
    assert imported("train", "--help") == set()


def test_a_dry_run_needs_what_builds_the_parts_and_no_more(digits: Path) -> None:
    config = ROOT / "configs" / "smoke" / "growth.yaml"
    found = imported("train", config, f"data.shards={digits}", "--dry-run")
    assert "torch" in found
    assert not found & {"ray", "faiss", "sklearn", "pandas", "matplotlib"}
