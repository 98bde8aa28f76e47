"""A storm of faults over one long run: `python -m tests.faults.soak --minutes 20 --seed 0`.

Every 20 s on average (a Poisson process) a process of the run is killed or stopped: a rank, a k-means actor, the
controller, the raylet, the launcher. A launcher that ends is started again with `--resume auto`, as a batch system
does; that is a requeue. What needs a person (another exit code than 5, 70, 75, or of a signal) is a manual
intervention and ends the storm. When time is up the run is preempted, and must have the bytes of an undisturbed run
that is stopped at the same step.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from data_shards.build import build
from tests.faults.conftest import Recorder
from tests.faults.whole import ranks, reached, train
from tests.runs import command, content_hash, environment, events, files_left, find, processes_left, status, subspace

MEAN_S = 20.0
PREEMPTED = 75
REQUEUED = (5, 70, PREEMPTED)  # and death by a signal
STEPS = 30  # per epoch
WORDS = (
    "train.epochs=10000",  # it is stopped
    f"train.steps_per_epoch={STEPS}",
    "checkpoint.every_steps=10",
    "cluster.recluster_every=2",
    "growth.max_subspaces=4",
    "launch.max_restarts=30",  # a fault every 20 s is no sign of a run that gets nowhere
    "evaluate.nmi_seeds=1",
    "launch.timeout_s=20",
    "cluster.timeout_s=60",
)
# target -> (weight, words of its command line; none: the launcher, signal)
TARGETS: dict[str, tuple[int, str, signal.Signals]] = {
    "rank killed": (6, "rank", signal.SIGKILL),
    "rank stopped": (1, "rank", signal.SIGSTOP),
    "k-means actor killed": (3, "ray::ShardActor", signal.SIGKILL),
    "k-means actor stopped": (1, "ray::ShardActor", signal.SIGSTOP),
    "coordinator killed": (2, "ray::CoordinatorActor", signal.SIGKILL),
    "controller killed": (2, "ray::ControllerActor", signal.SIGKILL),
    "raylet killed": (1, "raylet/raylet", signal.SIGKILL),
    "launcher killed": (1, "", signal.SIGKILL),
    "launcher preempted": (1, "", signal.SIGTERM),
}


@dataclass
class Storm:
    """One disturbed run, and what became of it."""

    words: list[str | Path]
    run: Path
    draw: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    manual: int = 0
    recomputed: int = 0
    furthest: int = 0
    seen: int = 0

    def blow(self, minutes: float) -> float:
        """Run, with faults for some minutes, until it is put aside; return the seconds it took."""
        began, code = time.monotonic(), 0
        while not self.manual and not (code == PREEMPTED and time.monotonic() > began + minutes * 60):
            log = (self.run.parent / "launcher.log").open("a")
            launcher = subprocess.Popen(
                command(*self.words), env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                code = self._through(launcher, began + minutes * 60)
            finally:
                launcher.kill()
                log.close()
            if code > 0 and code not in REQUEUED:
                self.manual += 1
                print(f"exit code {code}: {status(self.run)}")
            self.launches += 1
        return time.monotonic() - began

    def _through(self, launcher: subprocess.Popen[bytes], until: float) -> int:
        """Disturb one launch until it ends, or ask it to end when time is up; return its exit code.

        A launch that begins when time is up has to take a step first: younger ones know no signals yet.
        """
        due, before = time.monotonic() + self.draw.expovariate(1 / MEAN_S), reached(self.run)
        while launcher.poll() is None:
            self._look()
            if time.monotonic() >= min(due, until):
                if due < until:
                    self._strike(psutil.Process(launcher.pid))
                elif reached(self.run) > before:
                    launcher.send_signal(signal.SIGTERM)
                    launcher.wait()
                due = time.monotonic() + self.draw.expovariate(1 / MEAN_S)
            time.sleep(0.2)
        self._look()
        return int(launcher.returncode)

    def _strike(self, launcher: psutil.Process) -> None:
        """Hit one target that is there; nothing when none is."""
        name = self.draw.choices(list(TARGETS), [weight for weight, _, _ in TARGETS.values()])[0]
        _, words, number = TARGETS[name]
        try:
            there = ranks(launcher, self.run) if words == "rank" else find(launcher, words) if words else [launcher]
            if there:
                self.draw.choice(there).send_signal(number)
                self.faults[name] += 1
        except (psutil.Error, KeyError):
            return  # it has just ended

    def _look(self) -> None:
        """Count the steps that restarts take again."""
        for restart in events(self.run, "restart")[self.seen :]:
            self.seen += 1
            self.recomputed += max(0, self.furthest - restart["step"])
            self.furthest = restart["step"]
        self.furthest = max(self.furthest, reached(self.run))


def soak(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Run under a storm, then the same work undisturbed; return the figures."""
    shards = folder / "digits16"
    build("digits", shards, size=16)
    run, calm = folder / "storm", folder / "calm"
    storm = Storm(train(shards, run, *WORDS, "--resume", "auto"), run, random.Random(seed))
    storm_s = storm.blow(minutes)
    deadline = time.monotonic() + 30
    while processes_left() and time.monotonic() < deadline:
        time.sleep(0.5)
    leaks, stopped = len(processes_left()) + len(files_left()), status(run)
    began = time.monotonic()
    done = subspace(*train(shards, calm, *WORDS), "--stop-after-step", str(stopped["step"]), timeout_s=7200)
    calm_s = time.monotonic() - began
    assert done.returncode == PREEMPTED, done.stderr
    return {
        "seed": seed,
        "bitwise": not storm.manual and content_hash(run) == content_hash(calm),
        "rc": stopped["exit_code"],
        "restarts": len(events(run, "restart")),
        "leaks": leaks,
        "minutes": round(storm_s / 60, 1),
        "steps": stopped["step"],
        "faults": sum(storm.faults.values()),
        "effective_time_percent": round(100 * calm_s / storm_s, 1),
        "steps_recomputed_percent": round(100 * storm.recomputed / stopped["step"], 1),
        "launches": storm.launches,
        "manual_interventions": storm.manual,
        **dict(sorted(storm.faults.items())),
    }


def main() -> int:
    """Run the storm, print and record its figures; return 0 when nothing was lost and nobody had to help."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        found = soak(Path(folder), asked.minutes, asked.seed)
    Recorder()("R3", "fault storm", **found)
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<26} {value}")
    return int(not found["bitwise"] or found["manual_interventions"] > 0 or found["leaks"] > 0)


if __name__ == "__main__":
    sys.exit(main())
