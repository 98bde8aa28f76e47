"""A checkpoint is what was written, or it is not seen; an acknowledged one is never lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import DataIntegrityError, UserError
from data_shards.files import sha256_of
from tests.faults.checkpoints import in_child, make, save_for_ever, save_until_killed, whole
from tests.faults.conftest import Recorder
from trainer.checkpoint import FORMAT, CheckpointStore, Poisoned, SaveFailed
from trainer.saving import Saver

GOLDEN = Path(__file__).parent / "golden"
long = pytest.mark.matrix


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("trials", [pytest.param(12, id="12"), pytest.param(200, marks=long, id="200")])
def test_a1_killed_at_random_times_of_a_save_loop(tmp_path: Path, record: Recorder, trials: int) -> None:
    draw, behind = random.Random(1), 0
    for trial in range(trials):
        root, acknowledged = tmp_path / str(trial) / "checkpoints", tmp_path / str(trial) / "acknowledged"
        root.mkdir(parents=True)
        process = in_child(save_for_ever, root, acknowledged)
        while not acknowledged.exists() or not acknowledged.read_text().strip():
            time.sleep(0.005)
        time.sleep(draw.random() * 0.1)  # the moment of the kill is the random part of the test
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        ahead = whole(CheckpointStore(root).newest()) - int(acknowledged.read_text())
        assert ahead >= 0
        behind += ahead > 0
        shutil.rmtree(root.parent)
    record("A1", "SIGKILL at a random time of a save loop", trials=trials, corrupt_loads=0, acknowledged_lost=0,
           killed_between_commit_and_acknowledgement=behind)  # fmt: skip


def test_a2_killed_at_every_touch_of_the_disk(tmp_path: Path, record: Recorder) -> None:
    point = 0
    seen = set()
    while True:
        point += 1
        root, done = tmp_path / str(point), tmp_path / f"{point}.done"
        CheckpointStore(root).save(make(10))
        process = in_child(save_until_killed, root, point, done)
        process.join()
        if done.exists():
            break
        assert process.exitcode == -signal.SIGKILL
        store = CheckpointStore(root)
        seen.add(whole(store.newest()))
        store.save(make(30))  # the next one is not in the way of what is left
        assert whole(store.newest()) == 30
        assert not [name for name in names(root) if name.endswith(".tmp") and name.startswith(".step")]
    assert seen == {10, 20}
    assert point > 30
    record("A2", "SIGKILL before and after every touch of the disk in a commit", points=point - 1, corrupt_loads=0)


def test_a3_disk_full_leaves_the_one_before_and_no_bytes(small_disk: Path, record: Recorder) -> None:
    store = CheckpointStore(small_disk, keep=2)
    first, second = (store.save(make(step, rows=1200)) for step in (10, 20))
    before, used = (
        {p: sha256_of(p / "tensors.safetensors") for p in (first, second)},
        shutil.disk_usage(small_disk).used,
    )
    with pytest.raises(SaveFailed, match=r"step 30 .*No space left.*intact") as failure:
        store.save(make(30, rows=1200))
    assert failure.value.exit_code == 70
    assert {p: sha256_of(p / "tensors.safetensors") for p in (first, second)} == before
    left = shutil.disk_usage(small_disk).used - used
    assert left == 0
    assert whole(store.newest()) == 20
    record("A3", "disk full during a save (tmpfs of 2.5 checkpoints)", bytes_left_over=left, previous_intact=True)


def test_a4_room_again_and_the_next_save_succeeds(small_disk: Path, record: Recorder) -> None:
    ballast = small_disk / "ballast"
    store = CheckpointStore(small_disk / "checkpoints", keep=2)
    saver = Saver(store, asynchronous=False)
    assert not saver.submit(make(10, rows=500), best=False)[0].error
    ballast.write_bytes(bytes(2200 << 10))
    skipped = [saver.submit(make(step, rows=500), best=False)[0] for step in (20, 30)]
    assert all("No space left" in saved.error for saved in skipped)
    ballast.unlink()
    assert not saver.submit(make(40, rows=500), best=False)[0].error
    assert whole(store.newest()) == 40
    record("A4", "disk full, then room again", saves_skipped=len(skipped), restarts=0)


@pytest.mark.parametrize("where", ["sync", "save_file", "write_text", "sha256_of"])
def test_a5_write_error_in_the_writing_thread_is_never_acknowledged(
    tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    store = CheckpointStore(tmp_path)
    saver = Saver(store, asynchronous=True)
    saver.submit(make(10), best=False)
    assert saver.drain()[0].error == ""
    threads = set()

    def broken(*arguments: Any) -> None:
        threads.add(threading.current_thread().name)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(f"trainer.checkpoint.{where}", broken)
    saver.submit(make(20), best=False)
    told = saver.drain()
    assert "Input/output error" in told[0].error
    assert threads == {"checkpoint_0"}
    monkeypatch.undo()
    newest = whole(store.newest())
    # Only after the commit itself may an error still leave the checkpoint: it is whole then, though not acknowledged.
    assert newest == 10 or where == "write_text"
    record("A5", f"EIO in {where} on the writing thread", false_acknowledgements=0, newest_step=newest)


@pytest.mark.parametrize("trials", [pytest.param(60, id="60"), pytest.param(200, marks=long, id="200")])
def test_a6_flips_truncations_and_zeroed_tails(tmp_path: Path, record: Recorder, trials: int) -> None:
    store = CheckpointStore(tmp_path)
    store.save(make(10))
    newest = store.save(make(20))
    draw, detected, injected = random.Random(0), 0, 0
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        content = (newest / name).read_bytes()
        broken = [_flipped(content, draw) for _ in range(trials // 3)]
        broken += [content[: int(len(content) * share)] for share in (0.1, 0.5, 0.9, 0.999)]
        broken += [content[:-512] + bytes(len(content[-512:]))]
        for damaged in broken:
            assert damaged != content
            (newest / name).write_bytes(damaged)
            injected += 1
            detected += whole(store.newest()) == 10
        (newest / name).write_bytes(content)
    assert whole(store.newest()) == 20
    assert detected == injected
    record("A6", "one bit flipped, truncated, tail zeroed, in every file", injected=injected, detected=detected)


def _flipped(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def test_a8_the_newest_is_told_by_its_manifest_and_must_be_ours(tmp_path: Path, record: Recorder) -> None:
    ours = {"run": "r", "config": "c"}
    store = CheckpointStore(tmp_path, keep=9, identity=ours)
    made = [store.save(make(step, attempt)) for step, attempt in ((10, 1), (40, 1), (20, 2), (20, 3), (30, 3))]
    for i, path in enumerate(made):  # file times say the opposite
        for file in [*path.iterdir(), path]:
            os.utime(file, (1e9 - i * 1e6,) * 2)
    wrong = 0
    for path, (step, attempt) in zip(reversed(made), ((30, 3), (20, 3), (20, 2), (40, 1), (10, 1)), strict=True):
        newest = store.newest()
        assert newest is not None
        wrong += (newest.state["step"], newest.state["attempt"]) != (step, attempt)
        shutil.rmtree(path)
    assert wrong == 0
    for other in ({"run": "another", "config": "c"}, {"run": "r", "config": "another"}):
        CheckpointStore(tmp_path, identity=other).save(make(90))
    store.save(make(50))
    assert whole(store.newest()) == 50
    record(
        "A8", "reversed file times, earlier attempts, another run's and configuration's checkpoints", wrong_picks=wrong
    )


def test_a9_retention_never_removes_the_last_durable_one(tmp_path: Path, record: Recorder) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    saver = Saver(store, asynchronous=True)
    write, gate = store._write, threading.Semaphore(1)

    def blocked(*arguments: Any) -> Any:
        assert gate.acquire(timeout=30)
        return write(*arguments)

    store._write = blocked  # type: ignore[method-assign]
    saver.submit(make(1), best=False)
    saver.drain()
    fewest, looks, stop = 99, 0, threading.Event()

    def look() -> None:
        nonlocal fewest, looks
        while not stop.is_set():
            fewest = min(fewest, len(store.complete()))
            looks += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    for step in range(2, 20):
        saver.submit(make(step), best=False)
        time.sleep(0.01)  # the save is in flight, and held
        gate.release()
    saver.drain()
    stop.set()
    watcher.join()
    assert fewest >= 1
    assert whole(store.newest()) == 19
    record("A9", "asynchronous saves held in flight while old ones are removed", fewest_durable=fewest, looks=looks)


def test_a10_folders_that_cannot_be_written(small_disk: Path, record: Recorder) -> None:
    store = CheckpointStore(small_disk / "checkpoints")
    store.save(make(10))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SaveFailed, match="Read-only file system"):
        store.save(make(20))
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert whole(store.newest()) == 10
    dangling = small_disk / "dangling"
    dangling.symlink_to("/nonexistent/place")
    with pytest.raises(SaveFailed):
        CheckpointStore(dangling).save(make(10))
    elsewhere = small_disk / "elsewhere"
    elsewhere.symlink_to(small_disk / "checkpoints")
    assert whole(CheckpointStore(elsewhere).newest()) == 10
    record("A10", "read-only disk, link to nowhere, link to elsewhere", typed_errors=2)


def test_a11_an_earlier_format_is_refused_by_its_number(tmp_path: Path, record: Recorder) -> None:
    shutil.copytree(GOLDEN / "format-1", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=f"format 1, this version reads {FORMAT}") as refusal:
        CheckpointStore(tmp_path / "checkpoints").newest()
    assert not isinstance(refusal.value, DataIntegrityError)
    record("A11", "checkpoint that format 1 wrote", versions_readable=1, refused_by_number=True)


def test_n3_poison_is_neither_saved_nor_gone_on_from(
    tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(make(10))
    poisoned = make(20)
    poisoned.tensors["model/w"][1, 7] = float("nan")
    with pytest.raises(Poisoned) as refusal:
        store.save(poisoned)
    assert refusal.value.exit_code == 4
    with monkeypatch.context() as patch:  # a valid hash over values that are not
        patch.setattr("trainer.checkpoint.not_finite", lambda tensors: [])
        store.save(poisoned)
    assert whole(store.newest()) == 10
    record("N3", "NaN inside, hash valid: at the save, and on disk", rc=4, saved=False, gone_on_from=False)
