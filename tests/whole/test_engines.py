"""The engine is not part of the result: one loss curve with growth and recluster, whoever spreads the work."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.runs import ROOT, events, steps, subspace

pytestmark = [pytest.mark.slow, pytest.mark.site]
if find_spec("deepspeed") is None:
    pytest.skip("DeepSpeed is not installed (extra 'deepspeed')", allow_module_level=True)

CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
CUT = ("train.engine.name=deepspeed", "train.engine.zero_stage=3", "train.engine.persistence_threshold=0")


def traces() -> set[Path]:
    """Return what DeepSpeed and what it may compile leave outside the run folder."""
    places = [Path.home() / ".triton", Path.home() / ".cache" / "torch_extensions"]
    return {path for place in places for path in place.rglob("*")} | set(Path("/dev/shm").glob("*deepspeed*"))


def train(digits: Path, run: Path, *words: str, nproc: int = 2, code: int = 0) -> str:
    """Run a training; return what it printed. Nothing of it may be left."""
    options = (f"data.shards={digits}", "cluster.backend=local", "optim.lr=3e-4", "--nproc", str(nproc))
    before = traces()
    # No compiler to be found: DeepSpeed has nothing to build at run time.
    path = os.pathsep.join(word for word in os.environ["PATH"].split(os.pathsep) if not (Path(word) / "gcc").exists())
    done = subspace("train", CONFIG, *options, *words, "--run-dir", run, variables={"PATH": path})
    assert done.returncode == code, done.stderr
    assert traces() <= before
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(run) in (process.info["cmdline"] or [])]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def reference(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("engines") / "ddp"
    train(digits, run)
    return run


def assert_same_curve(run: Path, reference: Path, num_steps: int = 24) -> None:
    found, expected = steps(run), steps(reference)
    assert [line["step"] for line in found] == list(range(1, num_steps + 1))
    assert [line["subspace"] for line in found] == [line["subspace"] for line in expected[:num_steps]]
    for line, other in zip(found, expected, strict=False):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3), line["step"]
    assert len(events(run, "growth")) == len(events(run, "recluster")) == 1


def test_zero_1_completes_with_the_curve_of_ddp_and_says_no_more(digits: Path, reference: Path, tmp_path: Path) -> None:
    said = train(digits, tmp_path / "run", "train.engine.name=deepspeed", "train.engine.zero_stage=1")
    assert_same_curve(tmp_path / "run", reference)
    assert (tmp_path / "run" / "exported" / "model.safetensors").exists()
    for noise in ("DeepSpeed", "deprecated", "gcc", "accelerator", "WARNING"):
        assert noise not in said + (tmp_path / "run" / "train.log").read_text(), noise


def test_a_run_goes_from_engine_to_engine(digits: Path, reference: Path, tmp_path: Path) -> None:
    """DDP on one rank, ZeRO-3 on two over growth and recluster, and DDP again on one."""
    run = tmp_path / "run"
    train(digits, run, "--stop-after-step", "4", nproc=1, code=75)
    train(digits, run, *CUT, "--resume", "must", "--stop-after-step", "18", code=75)
    assert len(events(run, "recluster")) == 1
    train(digits, run, "--resume", "must", "--stop-after-step", "20", nproc=1, code=75)
    assert_same_curve(run, reference, num_steps=20)


def test_zero_2_grows_like_ddp(digits: Path, reference: Path, tmp_path: Path) -> None:
    words = ("train.engine.name=deepspeed", "train.engine.zero_stage=2", "--stop-after-step", "18")
    train(digits, tmp_path / "run", *words, code=75)
    assert_same_curve(tmp_path / "run", reference, num_steps=18)


def test_zero_3_finishes_in_bf16_with_everything_on_the_host(digits: Path, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(
        digits, run, *CUT, "train.engine.offload=true", "train.precision=bf16", "train.accumulate=2", "train.epochs=1"
    )
    losses, others = [line["loss"] for line in steps(run)], [line["loss"] for line in steps(reference)[:8]]
    assert losses == pytest.approx(others, rel=0.05)
    assert losses != others
    weights = (run / "exported" / "model.safetensors").stat().st_size
    assert weights == (reference / "exported" / "model.safetensors").stat().st_size
