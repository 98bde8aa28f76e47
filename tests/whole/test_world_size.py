"""The number of ranks is not part of the result, also in fast runs (conformance check 10)."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.runs import ROOT, events, steps, subspace

pytestmark = pytest.mark.slow
CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"


def assignment(run: Path) -> list[int]:
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    return load_file(folder / "tensors.safetensors")["assignment/labels"].tolist()


def run_with(digits: Path, run: Path, nproc: int, *words: str) -> Path:
    done = subspace(
        "train",
        CONFIG,
        f"data.shards={digits}",
        "cluster.backend=local",
        *words,
        "--nproc",
        str(nproc),
        "--run-dir",
        run,
    )
    assert done.returncode == 0, done.stderr
    return run


def test_one_and_two_ranks_have_the_same_losses_and_assignments(digits: Path, tmp_path: Path) -> None:
    words = ("optim.lr=3e-4",)  # float differences grow with the rate; deterministic runs need no such care
    one = run_with(digits, tmp_path / "one", 1, *words)
    two = run_with(digits, tmp_path / "two", 2, *words)
    assert len(steps(one)) == len(steps(two)) == 24
    assert len(events(one, "growth")) == len(events(two, "growth")) == 1
    assert len(events(one, "recluster")) == len(events(two, "recluster")) == 1
    for a, b in zip(steps(one), steps(two), strict=True):
        assert a["subspace"] == b["subspace"]
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a["step"]
    assert {line["subspace"] for line in steps(one)} == {0, 1}
    assert assignment(one) == assignment(two)
    assert len(set(assignment(one))) == 2
