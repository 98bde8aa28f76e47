from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data_shards.build as build_module
from data_shards.build import build
from data_shards.errors import UserError
from data_shards.staging import Staging
from data_shards.verify import verify

OPTIONS = {"num_samples": 120, "pixels": 48}
SCRIPT = """
import sys, time
import data_shards.build as module
from pathlib import Path
write = module.write_shard
def slow(path, *rest):
    time.sleep(0.25)
    return write(path, *rest)
module.write_shard = slow
module.build("phantoms", Path(sys.argv[1]), stored="png", options={"num_samples": 120, "pixels": 48})
"""


def small_shards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cut shards of about eight phantoms and return the list of those that get written."""
    plan, write, written = build_module._plan, build_module.write_shard, []

    def counted(path: Path, *rest: object):
        written.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(build_module, "_plan", lambda listing, headers, form, _: plan(listing, headers, form, 48_000))
    monkeypatch.setattr(build_module, "write_shard", counted)
    return written


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dest = tmp_path / "dest"
    script = SCRIPT.replace(
        "write = module", "plan = module._plan\nmodule._plan = lambda a, b, c, d: plan(a, b, c, 48_000)\nwrite = module"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(dest)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("dest.building-*/records/*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not dest.exists()
    (building,) = tmp_path.glob("dest.building-*")
    finished = {path.name.removesuffix(".json") for path in (building / "records").glob("*.json")}
    assert len(finished) >= 4
    damaged = sorted(finished)[0]
    data = bytearray((building / "shards" / damaged).read_bytes())
    data[len(data) // 2] ^= 1
    (building / "shards" / damaged).write_bytes(data)

    written = small_shards(monkeypatch)
    manifest = build("phantoms", dest, stored="png", options=OPTIONS)
    assert set(written) == {entry.file for entry in manifest.shards} - finished | {damaged}
    assert verify(dest) == []
    assert not building.exists()

    build("phantoms", tmp_path / "undisturbed", stored="png", options=OPTIONS)
    for path in dest.iterdir():
        assert path.read_bytes() == (tmp_path / "undisturbed" / path.name).read_bytes()


def test_a_changed_source_does_not_reuse_old_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = small_shards(monkeypatch)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            build("phantoms", tmp_path / "dest", stored="png", options=OPTIONS)
    before = len(written)
    build("phantoms", tmp_path / "dest", stored="png", options=OPTIONS | {"seed": 1})
    assert len(written) >= 2 * before - 2
    assert len(list(tmp_path.glob("dest.building-*"))) == 1  # the unfinished build of the other seed is kept


def test_a_disk_that_fills_up_keeps_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = small_shards(monkeypatch)
    counted = build_module.write_shard

    def full(path: Path, *rest: object):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return counted(path, *rest)

    monkeypatch.setattr(build_module, "write_shard", full)
    with pytest.raises(UserError, match=r"the disk is full.*run the same command again"):
        build("phantoms", tmp_path / "dest", stored="png", options=OPTIONS)
    monkeypatch.setattr(build_module, "write_shard", counted)
    manifest = build("phantoms", tmp_path / "dest", stored="png", options=OPTIONS)
    assert len(written) == len(manifest.shards)


def test_a_second_builder_is_refused(tmp_path: Path) -> None:
    first, second = (Staging(tmp_path / "dest", "0" * 64) for _ in range(2))
    with first.open(), pytest.raises(UserError, match="Another build"), second.open():
        pass


def test_a_destination_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "dest", "0" * 64)
    with staging.open():
        (tmp_path / "dest").mkdir()
        with pytest.raises(UserError, match="has appeared"):
            staging.commit()


def test_a_destination_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="Cannot write"), Staging(tmp_path / "file" / "dest", "0" * 64).open():
        pass
