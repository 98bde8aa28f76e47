"""Breaks a process of a run from within: Python imports this by itself where the folder is on PYTHONPATH.

The variable FAULTS holds JSON, a list of {target, kind, rank, call, marker, seconds}: at the n-th call of the function
`target` (`module:Class.name`) in rank `rank` the fault fires, once: the marker file, made first, keeps it from firing
again after a restart, and is the proof that it did. Slow faults have no marker and fire at every call from the n-th on.
Nothing is imported or changed before the target's module is.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def fire(kind: str, seconds: float) -> None:
    """Do it; only waits and slow calls return."""
    import ctypes
    import resource
    import signal

    if kind in ("KILL", "STOP", "SEGV", "ABRT", "TERM"):
        os.kill(os.getpid(), getattr(signal, "SIG" + kind))
    elif kind == "exit":
        os._exit(0)
    elif kind == "exception":
        raise RuntimeError("injected")
    elif kind == "gil":
        ctypes.PyDLL(None).sleep(600)
    elif kind == "sleep":
        time.sleep(seconds)
    elif kind == "memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20), resource.RLIM_INFINITY))
        held = [bytearray(1 << 20) for _ in range(1 << 12)]
        del held
    else:
        raise AssertionError(kind)


def mine(marker: str, call: int) -> bool:
    """Make the marker; False when it is there already."""
    try:
        file = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    os.write(file, json.dumps({"pid": os.getpid(), "time": time.time(), "call": call}).encode())
    os.close(file)
    return True


def breaking(function: Any, fault: dict[str, Any]) -> Any:
    calls = 0

    def broken(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        once = "marker" in fault
        if calls == fault["call"] and mine(fault["marker"], calls) if once else calls >= fault["call"]:
            if fault["kind"] == "shape":
                arguments = (*arguments[:-1], arguments[-1].new_zeros(7, *arguments[-1].shape[1:]))
            else:
                fire(fault["kind"], fault["seconds"])
        return function(*arguments, **named)

    return broken


def patch(module: Any, faults: list[dict[str, Any]]) -> None:
    for fault in faults:
        *path, name = fault["target"].partition(":")[2].split(".")
        holder = module
        for part in path:
            holder = getattr(holder, part)
        setattr(holder, name, breaking(getattr(holder, name), fault))  # plain functions and methods, no static ones


class Finder(importlib.abc.MetaPathFinder):
    """Finds target modules as everybody else does, and patches them once they have been executed."""

    def __init__(self, faults: list[dict[str, Any]]) -> None:
        self.faults = faults

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        wanted = [fault for fault in self.faults if fault["target"].partition(":")[0] == name]
        if not wanted:
            return None
        self.faults = [fault for fault in self.faults if fault not in wanted]  # so that the search below ends
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: Any) -> None:
            execute(module)
            patch(module, wanted)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


if "FAULTS" in os.environ:
    own = [f for f in json.loads(os.environ["FAULTS"]) if str(f["rank"]) == os.environ.get("RANK")]
    if own:
        sys.meta_path.insert(0, Finder(own))
