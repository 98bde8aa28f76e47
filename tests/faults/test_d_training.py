"""Data that goes bad, and loaders that lose what they need, while a run trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_shards.quarantine import TrainingReader
from data_shards.reader import open_shards
from tests.data_shards.damage import spoil
from tests.ranks import run_on_ranks
from tests.runs import ROOT, disturbed, environment, events, find, status, steps, subspace, wait_until

SMOKE = ROOT / "configs" / "smoke" / "fixed.yaml"
LONG = ("train.epochs=2", "train.finetune_epoch=2", "train.steps_per_epoch=60", "train.batch_size=32",
        "train.samples_per_class=4", "launch.max_restarts=2")  # fmt: skip


@pytest.fixture
def shards(digits: Path, tmp_path: Path) -> Path:
    """Return a copy of the digits to spoil."""
    return Path(shutil.copytree(digits, tmp_path / "shards"))


def train(shards: Path, run: Path, *words: str) -> list[str | Path]:
    return ["train", SMOKE, f"data.shards={shards}", "--run-dir", run, *words]


def spoiled(shards: Path, num: int) -> set[int]:
    """Flip a bit in each of some training images; return their sample ids."""
    reader = open_shards(shards, verify=False).split("train")
    for row in range(0, num * 90, 90):
        spoil(reader, row)
    return set(reader.sample_ids[: num * 90 : 90].tolist())


@pytest.mark.matrix
def test_d5_few_are_replaced_and_named_many_stop_the_run(record: Any, shards: Path, tmp_path: Path) -> None:
    """1 % of 1,079 images are ten. Whole files are not verified here: they would be refused when they are opened."""
    few = spoiled(shards, 6)
    done = subspace(*train(shards, tmp_path / "few", "data.verify=false"))
    assert done.returncode == 0, done.stderr
    assert {event["sample_id"] for event in events(tmp_path / "few", "quarantined")} == few  # clustering reads all
    again = subspace(*train(shards, tmp_path / "again", "data.verify=false", "data.num_workers=2"))
    assert again.returncode == 0, again.stderr
    losses = [[line["loss"] for line in steps(tmp_path / name)] for name in ("few", "again")]
    assert losses[0] == losses[1]
    record("D5", "6 of 1,079 training images bad, in the run and in one with loader workers", quarantined=len(few),
           bitwise=True, rc=0)  # fmt: skip

    assert len(few | spoiled_more(shards)) == 11
    for allowed, expected in (("0.01", 11), ("0", 1)):
        run = tmp_path / f"many{allowed}"
        stopped = subspace(*train(shards, run, "data.verify=false", f"data.max_corrupt={allowed}"))
        assert stopped.returncode == 3, stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert f"{expected} of 1079 images" in status(run)["reason"]
        assert "shards verify" in status(run)["reason"]
        assert len(events(run, "quarantined")) == expected
    record("D5", "11 of 1,079 with data.max_corrupt 0.01; 1 with 0", rc=3, restarts=0)

    checked = subspace(*train(shards, tmp_path / "checked"))
    assert checked.returncode == 3
    assert "does not match its sha256" in checked.stderr


def spoiled_more(shards: Path) -> set[int]:
    reader = open_shards(shards, verify=False).split("train")
    rows = [1, 101, 201, 301, 401]
    for row in rows:
        spoil(reader, row)
    return set(reader.sample_ids[rows].tolist())


def _share(shards: str, bad: list[list[int]], allowed: float) -> tuple[set[int], str]:
    """Be a rank that met its own bad rows; return what it knows after the exchange, and the error."""
    from trainer import distributed
    from trainer.reclustering import share_bad_images

    split = open_shards(shards).split("train", partial(TrainingReader, max_corrupt=allowed))
    split.admit(dict.fromkeys(bad[distributed.rank()], "met here"))
    try:
        share_bad_images(split)
    except Exception as error:
        return set(split.bad), str(error)
    return set(split.bad), ""


def test_d5_ranks_count_together(record: Any, digits: Path) -> None:
    bad = [[1, 2, 3, 4, 5, 6], [4, 5, 6, 7, 8, 9, 10, 11]]
    for allowed, stops in ((0.02, False), (0.01, True)):
        for known, error in run_on_ranks(_share, 2, str(digits), bad, allowed):
            assert known == set(range(1, 12))
            assert bool(error) == stops
    assert run_on_ranks(_share, 2, str(digits), [[], []], 0.0) == [(set(), "")] * 2
    record("D5", "6 and 8 bad images on two ranks, 11 together, 10 allowed", rc=3)


@pytest.mark.matrix
@pytest.mark.parametrize("harm", ["rewritten", "cut"])
def test_d7_a_shard_changes_while_a_run_trains(harm: str, record: Any, shards: Path, tmp_path: Path) -> None:
    run, path = tmp_path / "run", shards / "train-00000.arrow"
    changed = 0.0

    def disturb(process: psutil.Process) -> None:
        nonlocal changed
        wait_until(lambda: len(steps(run)) >= 5, "five steps")
        with open(path, "r+b") as stream:
            if harm == "cut":
                stream.truncate(path.stat().st_size // 3)
            else:
                size = path.stat().st_size
                stream.seek(size // 4)
                stream.write(b"\xa5" * (size // 2))
        changed = time.time()

    assert disturbed(train(shards, run, *LONG), disturb) == 3
    reason = status(run)["reason"]
    assert "train-00000.arrow" in reason or "data.max_corrupt" in reason
    (failed,) = events(run, "failed")
    record("D7", f"training shard {harm} in place while a run trains", rc=3, detected_s=failed["time"] - changed)


LOADER = """
import resource, sys
from data_shards.augment import AugmentConfig
from data_shards.loader import train_loader
from data_shards.order import BatchRule, batches
from data_shards.reader import open_shards
reader = open_shards(sys.argv[1]).split("train")
config = AugmentConfig(int(sys.argv[2]), channels=1, mean=(0.5,), std=(0.5,))
order = batches(0, 0, None, reader.labels, 1, BatchRule(64, 8, steps=200))
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
kept = []
try:
    for batch in train_loader(reader, order, config, 0, 0, num_workers=2):
        kept.append(batch)
except Exception as error:
    print(type(error).__name__, getattr(error, "exit_code", None), len(kept), error, flush=True)
"""


def loader(shards: Path, side: int, num_files: int, before: str = "") -> tuple[str, float]:
    """Load batches in a process with few descriptors, or with a /dev/shm of its own; return its words and its time."""
    words = [sys.executable, "-c", LOADER, str(shards), str(side), str(num_files)]
    if before:
        words = ["unshare", "--mount", "sh", "-c", f'{before} && exec "$@"', "sh", *words]
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=environment(), cwd=ROOT)
    return done.stdout, time.monotonic() - began


@pytest.mark.parametrize("num_files", [64, *(pytest.param(num, marks=pytest.mark.matrix) for num in (40, 24, 20))])
def test_d9_few_file_descriptors(num_files: int, record: Any, digits: Path) -> None:
    said, seconds = loader(digits, 16, num_files)
    assert said.startswith("LoaderError 70 ") and "open files" in said, said
    record("D9", f"ulimit -n {num_files}: batches that are kept use them up", detected_s=seconds, rc=70)


@pytest.mark.parametrize("ballast_mb", [0, 3])
def test_d9_shared_memory_is_full(ballast_mb: int, record: Any, digits: Path) -> None:
    if os.geteuid():
        record.impossible("D9", "a /dev/shm of its own needs root")
    fill = "mount -t tmpfs -o size=3m tmpfs /dev/shm"
    fill += f" && head -c {ballast_mb << 20} /dev/zero > /dev/shm/ballast" if ballast_mb else ""
    said, seconds = loader(digits, 128, 0, fill)
    assert said.startswith("LoaderError 70 0 ") or "No space left" in said, said
    record("D9", f"/dev/shm of 3 MB, {ballast_mb} MB of it taken", detected_s=seconds, rc=70)


def test_d9_many_shards_need_few_descriptors(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data_shards.build as module

    plan = module._plan
    monkeypatch.setattr(module, "_plan", lambda listing, headers, form, _: plan(listing, headers, form, 4000))
    module.build("digits", tmp_path / "many", size=8)
    num_shards = len(list((tmp_path / "many").glob("*.arrow")))
    used = len(os.listdir("/proc/self/fd"))
    reader = open_shards(tmp_path / "many").split("train")
    assert num_shards > 64
    assert len(os.listdir("/proc/self/fd")) == used
    assert reader.images([0, len(reader) - 1]).shape == (2, 8, 8, 1)
    record("D9", f"{num_shards} shards open at once", descriptors=0)


@pytest.mark.matrix
def test_d9_building_with_few_descriptors(record: Any, tmp_path: Path) -> None:
    """From no process at all to all that is needed: every limit gives a sentence or shards."""
    outcomes = []
    for num_files in (8, 12, 16, 24, 64):
        script = f'ulimit -n {num_files}; exec "$@"'
        words = ["sh", "-c", script, "sh", sys.executable, "-m", "launch", "shards", "build", "digits"]
        done = subprocess.run([*words, str(tmp_path / str(num_files))], capture_output=True, text=True, timeout=200,
                              env=environment(), cwd=ROOT)  # fmt: skip
        outcomes.append(done.returncode)
        assert done.returncode in (0, 2), (num_files, done.stderr)
        assert "Traceback" not in done.stderr, (num_files, done.stderr)
    assert outcomes[-1] == 0
    record("D9", "shards build with ulimit -n 8, 12, 16, 24, 64", outcomes=str(outcomes))


def killed_worker(run: Path) -> Callable[[psutil.Process], None]:
    def disturb(process: psutil.Process) -> None:
        wait_until(lambda: len(steps(run)) >= 5, "five steps")
        (rank,) = [p for p in find(process, "launch rank", str(run)) if p.children()]
        rank.children()[0].kill()

    return disturb


@pytest.mark.matrix
def test_d9_a_loader_worker_is_killed(record: Any, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train(shards, run, *LONG, "data.num_workers=2")
    assert disturbed(words, killed_worker(run)) == 0
    restarts = len(events(run, "restart"))
    assert restarts == 1
    assert "Traceback" not in (run / "train.log").read_text()
    assert "processes that load batches failed" in (run / "train.log").read_text()
    assert status(run)["state"] == "completed"
    record("D9", "kill -9 of a loader worker in mid-epoch", restarts=restarts, rc=0)
