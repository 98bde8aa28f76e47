"""S4, S13: a real run with Ray is watched from outside: where its token shows, who may read and guess its files."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from launch.services import TOKEN_FILE
from tests.faults.conftest import Recorder
from tests.runs import ROOT, disturbed, environment, wait_until

TMP = Path(environment()["TMPDIR"])


def files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def holding(token: bytes, folder: Path) -> set[str]:
    """Return the files below `folder` that hold the token."""
    found = set()
    for path in files_below(folder):
        with suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 64 << 20 and token in path.read_bytes():
                found.add(path.name)
    return found


class Watcher:
    """Looks at a run until it has ended."""

    def __init__(self, run: Path) -> None:
        self.run, self.token, self.looks = run, b"", 0
        self.modes: set[int] = set()
        self.in_commands: set[str] = set()
        self.in_variables: set[str] = set()
        self.in_files: set[str] = set()
        self.open_elsewhere: set[str] = set()
        self.temporary: dict[str, int] = {}

    def __call__(self, process: psutil.Process) -> None:
        token_file = self.run / TOKEN_FILE
        wait_until(lambda: token_file.exists() and token_file.stat().st_size > 0, "the token of the run")
        self.token = token_file.read_bytes().strip()
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            with suppress(OSError):
                self.modes.add(stat.S_IMODE(token_file.stat().st_mode))
            self.look()
            time.sleep(0.5)

    def look(self) -> None:
        self.looks += 1
        for other in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                folder = Path(f"/proc/{other.pid}")
                if self.token in (folder / "cmdline").read_bytes():
                    self.in_commands.add(other.name())
                if self.token in (folder / "environ").read_bytes():
                    self.in_variables.add(other.name())
                if os.fsencode(TMP) in (folder / "environ").read_bytes():
                    self.open_elsewhere |= {link for link in links(folder / "fd") if is_foreign(link)}
        self.in_files |= holding(self.token, TMP)
        for path in TMP.iterdir():
            with suppress(OSError):
                self.temporary[path.name] = stat.S_IMODE(path.stat().st_mode)


def links(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        with suppress(OSError):
            yield os.readlink(path)


def is_foreign(link: str) -> bool:
    """Return whether a file has a name in a folder that everybody writes to, outside of the run's own folders."""
    installed = (os.path.realpath(sys.prefix), str(ROOT))  # a checkout may be there, too
    return link.startswith(("/tmp/", "/var/tmp/")) and not link.startswith(
        (str(TMP), "/tmp/pytest-", "/tmp/#", *installed)
    )


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_s4_s13_token_and_temporary_files_of_a_run(tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    watcher = Watcher(run)
    settings = ("cluster.backend=ray", "train.epochs=2", f"data.shards={tmp_path / 'shards'}")
    code = disturbed(["train", ROOT / "configs/smoke/growth.yaml", *settings, "--run-dir", run], watcher, 500)
    assert code == 0
    assert len(watcher.token) == 64 and watcher.looks > 3
    assert watcher.modes == {0o600}
    assert (watcher.in_commands, watcher.in_files, holding(watcher.token, tmp_path)) == (set(), set(), set())
    assert watcher.in_variables == set()
    record("S4", "a run with Ray, watched", rc=code, looks=watcher.looks, mode="0600", in_arguments=0, in_variables=0,
           in_files=0)  # fmt: skip

    ours = {name: mode for name, mode in watcher.temporary.items() if "inductor" not in name}
    assert ours and all(mode & 0o077 == 0 for mode in ours.values()), ours
    assert all(re.fullmatch(r"(ray|torch|tmp|pymp-|s)\w*[\w]{8}", name) for name in ours), ours
    assert watcher.open_elsewhere == set()
    writable = [path for path in files_below(run) if path.lstat().st_mode & stat.S_IWOTH]
    assert writable == []
    record("S13", "a run with Ray, watched", temporary_folders=len(ours), world_writable=0, open_elsewhere=0)
