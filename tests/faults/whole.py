"""Whole runs of the smoke configuration, broken on purpose: from outside by signals, from within by `inject/`.

Runs are deterministic, so that what a disturbed one ends with can be compared bit by bit with the undisturbed one.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.runs import ROOT, content_hash, disturbed, events, find, status, steps, wait_until

CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
STEP, SAVE, RECLUSTER = "trainer.loop:Loop._step", "trainer.keeper:Keeper.save", "trainer.reclustering:Reclustering.run"
GROW, JOIN = "trainer.loop:Loop._grow", "trainer.distributed:initialise"
GATHER, COMMIT = "trainer.distributed:gather_rows", "trainer.checkpoint:sha256_of"
RESUME = "trainer.checkpoint:CheckpointStore.newest_valid"
EVERY = 5  # steps between checkpoints
LOCAL = ("cluster.backend=local", f"checkpoint.every_steps={EVERY}", "evaluate.nmi_seeds=1")


@dataclass(frozen=True)
class Fault:
    """What happens in which rank at which call of a function; `once` makes a marker and never fires again."""

    kind: str
    target: str = STEP
    rank: int = 1
    call: int = 1
    seconds: float = 0.0
    once: bool = True


def variables(folder: Path, *faults: Fault) -> dict[str, str]:
    """Return the environment that makes the faults happen; markers are made in `folder`."""
    told = []
    for number, fault in enumerate(faults):
        one = asdict(fault)
        if one.pop("once"):
            one["marker"] = str(folder / f"fired-{number}")
        told.append(one)
    return {"FAULTS": json.dumps(told), "PYTHONPATH": f"{ROOT / 'tests' / 'faults' / 'inject'}:{ROOT}"}


def fired(folder: Path, number: int = 0) -> dict[str, Any]:
    """Return the marker of a fault: pid, time, call. Fails when the fault has not happened."""
    path = folder / f"fired-{number}"
    assert path.exists(), "the fault did not fire"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def train(digits: Path, run: Path, *words: str | Path) -> list[str | Path]:
    """Return the command of a deterministic run of two ranks."""
    return ["train", CONFIG, f"data.shards={digits}", "--deterministic", "--run-dir", run, *words]


def local(digits: Path, run: Path, *words: str | Path) -> list[str | Path]:
    """The same without Ray, with a checkpoint every `EVERY` steps."""
    return train(digits, run, *LOCAL, *words)


def ranks(process: psutil.Process, run: Path) -> list[psutil.Process]:
    """Return the ranks below a launcher, by rank."""
    found = {process.environ()["RANK"]: process for process in find(process, "launch", "rank", str(run))}
    return [found[rank] for rank in sorted(found)]


def broken(
    folder: Path, words: list[str | Path], *faults: Fault, watch: Callable[[psutil.Process], None] = lambda _: None
) -> int:
    """Run with faults from within to the end; return the exit code."""
    return disturbed(words, watch, variables=variables(folder, *faults))


def same(run: Path, undisturbed: Path) -> bool:
    """Assert that a run completed with the bytes of the undisturbed one and its steps, and return True."""
    assert status(run)["state"] == "completed"
    assert content_hash(run) == content_hash(undisturbed)
    assert [(s["step"], s["loss"]) for s in steps(run)] == [(s["step"], s["loss"]) for s in steps(undisturbed)]
    return True


def restarts(run: Path) -> int:
    return len(events(run, "restart"))


@dataclass(frozen=True)
class Kill:
    """What one kill cost."""

    step: int
    steps_lost: int
    recovered_s: float


def kill_random_rank(process: psutil.Process, run: Path, at_step: int, draw: random.Random) -> Kill:
    """SIGKILL a random rank at about a step, wait until the run has taken its next step; return what it cost."""
    before = restarts(run)
    wait_until(lambda: reached(run) >= at_step, f"step {at_step}")
    time.sleep(draw.random() * 0.1)
    victim = draw.choice(ranks(process, run))
    step, killed_at = reached(run), time.time()
    victim.kill()
    wait_until(lambda: restarts(run) > before, "the restart")
    restart = events(run, "restart")[before]
    wait_until(lambda: later(run, restart["time"]) or status(run)["state"] != "running", "the next step")
    first = (later(run, restart["time"]) or [{"time": time.time()}])[0]
    return Kill(step, max(0, step - restart["step"]), first["time"] - killed_at)


def reached(run: Path) -> int:
    return max((line["step"] for line in steps(run)), default=0)


def later(run: Path, moment: float) -> list[dict[str, Any]]:
    """Return the steps that were taken after a moment."""
    return [line for line in steps(run) if line["time"] > moment]
