"""A temporary folder for Ray that is gone soon after its owner, also when that was killed.

Ray's servers die with the process that started them (PDEATHSIG), but its agents look for their raylet only once they
have started, a minute on a busy machine, and nobody removes the folder of a killed driver. So a process of its own
waits for the end of its parent, ends what still writes below the folder, and removes it. It is this file run as a
script, without the package and without site-packages: 10 MB, and up in 20 ms.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

_POLL_S = 0.2
_PATIENCE_S = 30.0


class RayFolder:
    """A new folder, removed by `close`, or by the janitor when this process ends without it."""

    def __init__(self) -> None:
        # Short: socket paths below it are limited to 107 characters. Two, since Ray opens the one it is given to
        # everybody (mode 0777, Ray 2.60); the outer one stays ours alone.
        self._private = tempfile.mkdtemp(prefix="ray")
        self.path = os.path.join(self._private, "r")
        os.mkdir(self.path, 0o700)
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._private, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends this process's group or terminal must not end the janitor
        )

    def close(self) -> None:
        """Remove the folder and let the janitor go; closing twice is fine."""
        shutil.rmtree(self._private, ignore_errors=True)
        self._janitor.kill()
        self._janitor.wait(_PATIENCE_S)


def users(folder: str) -> list[int]:
    """Return the processes of Ray that have a file open below `folder` (their titles hide their arguments)."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError):
            with open(f"/proc/{name}/cmdline", "rb") as file:
                is_ray = b"ray" in file.read()
            if is_ray and any(link.startswith(f"{folder}/") for link in _open_files(name)):
                found.append(int(name))
    return found


def _open_files(pid: str) -> list[str]:
    links = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return links


def main(folder: str, parent: int) -> None:
    """Wait until `parent` has ended, then leave nothing of `folder`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    deadline = time.monotonic() + _PATIENCE_S
    while (left := users(folder)) or os.path.exists(folder):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
