"""Write docker/requirements-TARGET.lock: every file that the image installs, by version and sha256.

    python3.11 docker/lock.py cpu      python3.12 docker/lock.py cuda

Run it with the Python of the image (on Linux, x86-64) whenever setup.cfg or a constraints file changes; pip resolves
setup.cfg within the constraints, downloads nothing twice and installs nothing. Where files come from is not written
down: the hash decides. Everything is a wheel but DeepSpeed, which is published as source only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("deepspeed",)
EXTRAS = {"cpu": "cpu,dicom,deepspeed", "cuda": "gpu,dicom,deepspeed"}
CONSTRAINTS = {"cpu": ["constraints.txt"], "cuda": ["constraints.txt", "docker/constraints-cuda.txt"]}
HEAD = "# Made by docker/lock.py from setup.cfg and the constraints; one file per line. Python {}, Linux, x86-64.\n"


def resolved(target: str) -> list[dict[str, object]]:
    """Return pip's report of what it would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        words += ["--only-binary", ":all:", "--no-binary", ",".join(SOURCES)]
        words += [word for path in CONSTRAINTS[target] for word in ("--constraint", path)]
        subprocess.run([sys.executable, "-m", "pip", *words, f".[{EXTRAS[target]}]"], cwd=HERE.parent, check=True)
        found: list[dict[str, object]] = json.loads(report.read_text())["install"]
        return found


def locked(report: list[dict[str, object]]) -> str:
    """Return the lines of a lock file, sorted."""
    lines = set()
    for item in report:
        metadata, origin = item["metadata"], item["download_info"]
        assert isinstance(metadata, dict) and isinstance(origin, dict)
        if "dir_info" not in origin:  # this project
            digest = origin["archive_info"]["hashes"]["sha256"]
            lines.add(f"{metadata['name']}=={metadata['version']} --hash=sha256:{digest}")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return HEAD.format(version) + "\n".join(sorted(lines, key=str.lower)) + "\n"


if __name__ == "__main__":
    name = sys.argv[1]
    (HERE / f"requirements-{name}.lock").write_text(locked(resolved(name)))
