"""What is not finite reaches no weight and no checkpoint, and a flipped bit is found: whole runs of real ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.faults.conftest import Recorder
from tests.faults.whole import CONFIG, same
from tests.runs import ROOT, content_hash, events, status, steps, subspace
from trainer import miners
from trainer.losses.margin import margin_loss
from trainer.objectives.learners import Learners
from trainer.objectives.subspace import SubspaceObjective
from trainer.subspaces.partition import SubspacePartition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
WORDS = ("cluster.backend=local", "evaluate.nmi_seeds=1", "train.on_nonfinite=skip")
# what is poisoned -> the rank and the step, and what the event says of it
PLACES = {
    "vectors": (1, 5, "the vectors of rank 1"),
    "loss": (0, 11, "the loss on rank 0"),
    "layer": (1, 14, "the gradients"),
    "sum": (1, 19, "the gradients on rank 1"),
}


def poison(folder: Path, what: str, rank: int | None, first: int, last: int = 0, once: bool = False) -> dict[str, Any]:
    marker = str(folder / f"{what}-fired")
    return {"what": what, "rank": rank, "first": first, "last": last or first, "marker": marker, "once": once}


def poisoned(
    digits: Path, run: Path, poisons: list[dict[str, Any]], *words: str, nproc: int = 2, deterministic: bool = True
) -> tuple[int, str]:
    """Run poisoned ranks to the end; return the exit code and what was said."""
    mode = ["--deterministic"] if deterministic else []
    variables = {"POISON": json.dumps(poisons), "PYTHONPATH": f"{ROOT / 'tests' / 'faults' / 'poison'}:{ROOT}"}
    arguments = [f"data.shards={digits}", *mode, "--run-dir", run, "--nproc", str(nproc), *WORDS, *words]
    done = subspace("train", CONFIG, *arguments, variables=variables)
    return done.returncode, done.stderr


def fired(folder: Path, what: str) -> list[tuple[int, int]]:
    """Return the (step, rank) at which a poison acted."""
    return sorted(
        (int(path.name.split("-")[2]), int(path.name.split("-")[3])) for path in folder.glob(f"{what}-fired-*")
    )


@pytest.mark.matrix
@pytest.mark.parametrize("deterministic", [True, False])
def test_n1_four_places_on_one_rank_are_left_out_by_all(
    deterministic: bool, digits: Path, tmp_path: Path, record: Recorder
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    poisons = [poison(tmp_path, what, rank, step) for what, (rank, step, _) in PLACES.items()]
    code, said = poisoned(digits, run, poisons, deterministic=deterministic)
    assert code == 0, said
    for what, (rank, step, _) in PLACES.items():
        assert fired(tmp_path, what) == [(step, rank)]
    skipped = events(run, "skipped")
    assert [(e["step"], e["cause"]) for e in skipped] == [(step, cause) for _, step, cause in PLACES.values()]

    left_out = [poison(tmp_path, "leave_out", None, step) for _, step, _ in PLACES.values()]
    assert poisoned(digits, other, left_out, deterministic=deterministic)[0] == 0
    assert len(fired(tmp_path, "leave_out")) == 2 * len(PLACES)
    assert content_hash(run) == content_hash(other)
    assert [(s["step"], s["loss"]) for s in steps(run)] == [(s["step"], s["loss"]) for s in steps(other)]
    assert len(steps(run)) == 24 - len(PLACES)
    record(
        "N1",
        f"NaN or infinity on one of two ranks ({'deterministic' if deterministic else 'plain DDP'})",
        injected_at_step=[step for _, step, _ in PLACES.values()],
        bitwise=True,
        places=list(PLACES),
        skipped=len(skipped),
        ranks_agree=True,
    )


def test_n1_stop_names_step_and_rank(digits: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    code, said = poisoned(digits, run, [poison(tmp_path, "vectors", 1, 5)], "train.on_nonfinite=stop")
    assert fired(tmp_path, "vectors") == [(5, 1)]
    assert code == status(run)["exit_code"] == 4, said
    assert "the vectors of rank 1 not finite at step 5" in status(run)["reason"]
    assert "Traceback" not in said
    assert max(line["step"] for line in steps(run)) == 4
    record("N1", "the same where the run is to stop", injected_at_step=5, rc=code, restarts=0, steps_after=0)


@pytest.mark.matrix
def test_n2_not_finite_at_every_step(digits: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    code, said = poisoned(digits, run, [poison(tmp_path, "vectors", 1, 10, last=1000)])
    assert code == status(run)["exit_code"] == 4, said
    assert fired(tmp_path, "vectors") == [(10, 1), (11, 1), (12, 1)]
    assert [e["in_a_row"] for e in events(run, "skipped")] == [1, 2, 3]
    assert "the vectors of rank 1" in status(run)["reason"]
    newest = max((run / "checkpoints").glob("step-*"))
    assert newest.name.startswith("step-00000008")
    tensors = load_file(newest / "tensors.safetensors")
    assert all(bool(value.isfinite().all()) for value in tensors.values() if value.is_floating_point())
    record("N2", "NaN in one rank's vectors from a step on", injected_at_step=10, rc=code, steps_after_first_nan=3)


@pytest.mark.matrix
def test_n4_flipped_bit_in_one_rank(digits: Path, tmp_path: Path, undisturbed: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    flip = poison(tmp_path, "bit", 1, 11, once=True)
    code, said = poisoned(
        digits,
        run,
        [flip],
        "train.verify_ranks_every=5",
        "checkpoint.every_steps=5",
        "train.on_nonfinite=stop",
        nproc=3,
    )
    assert code == 0, said
    assert fired(tmp_path, "bit") == [(11, 1)]
    log = (run / "train.log").read_text()
    assert "at step 15 rank 1 held weights or moments unlike the other ranks'" in log
    assert len(events(run, "restart")) == 1
    assert events(run, "restart")[0]["step"] == 10
    record(
        "N4",
        "a flipped mantissa bit in the weights of one of three ranks",
        injected_at_step=11,
        steps_lost=5,
        restarts=1,
        bitwise=same(run, undisturbed),
        detected_after_steps=4,
    )


@pytest.mark.matrix
@pytest.mark.parametrize(("setting", "codes"), [("lr=1e3", (0, 4)), ("lr=1e6", (0, 4)), ("weight_decay=1e6", (0, 4))])
def test_n5_absurd_rates(setting: str, codes: tuple[int, ...], digits: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    code, said = poisoned(digits, run, [], f"optim.{setting}", "train.on_nonfinite=stop")
    assert code in codes, said
    assert "Traceback" not in said
    assert events(run, "restart") == []
    assert (code == 4) == bool(status(run)["reason"])
    record("N5", setting, rc=code, restarts=0, reason=status(run)["reason"])


@pytest.mark.parametrize("setting", ["lr=1e38", "lr=.inf", "lr=.nan", "embedding_lr=-1", "weight_decay=1e39"])
def test_n5_rates_that_no_float_holds(setting: str, cli: Any, tmp_path: Path, record: Recorder) -> None:
    code, _, said = cli("train", CONFIG, f"optim.{setting}", "--run-dir", tmp_path / "run")
    assert code == 2
    assert "optim." in said
    assert not (tmp_path / "run").exists()
    record("N5", setting, rc=code)


def degenerate() -> dict[str, tuple[Tensor, Tensor]]:
    drawn, labels = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 4
    return {
        "zero vectors": (torch.zeros(32, 16), labels),
        "one zero vector": (torch.cat([torch.zeros(1, 16), drawn[1:]]), labels),
        "identical vectors": (drawn[:1].expand(32, 16).clone(), labels),
        "one class": (drawn, torch.zeros(32, dtype=torch.long)),
        "huge vectors": (drawn * 1e18, labels),
        "tiny vectors": (drawn * 1e-30, labels),
    }


def test_n5_degenerate_vectors(record: Recorder) -> None:
    finite, partition = 0, SubspacePartition((8, 8))
    learners = Learners(lambda *_: margin_loss, torch.optim.Adam, 1e-3, partition)
    for vectors, labels in degenerate().values():
        for miner in (miners.all_triplets, miners.nearest_beyond_cutoff, miners.distance_weighted):
            for block in (None, 1):
                leaf = vectors.clone().requires_grad_()
                objective = SubspaceObjective(learners, miner, seed=0)
                (update,) = objective.updates(leaf, labels, partition, block, step=0)
                update.loss.backward()
                assert update.loss.isfinite()
                assert leaf.grad is not None
                assert leaf.grad.isfinite().all()
                finite += 1
    record(
        "N5", "zero, identical, huge, tiny vectors and batches of one class, three miners", cases=finite, finite=finite
    )
