"""The runs below a folder, as rows of a table and as curves; files that did not change are not read again."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import UserError, printable
from launch.dashboard.curves import Curves
from launch.glance import Glance, glance

MAX_RUNS = 500
MAX_FOLDERS = 20_000  # that are looked into for runs
MAX_DEPTH = 8
MAX_CURVES = 64  # runs whose curves are kept up to date
SCAN_EVERY_S = 10.0
_FILES = ("status.json", "ledger.jsonl", "metrics.jsonl", "events.jsonl", "config.yaml")
Row = dict[str, Any]


def find_runs(root: Path) -> dict[str, Path]:
    """Return {name below root: folder} of the runs, by name; neither links nor what is inside a run is followed."""
    found: dict[str, Path] = {}
    waiting, looked = [(root, 0)], 0
    while waiting and looked < MAX_FOLDERS and len(found) < MAX_RUNS:
        folder, depth = waiting.pop()
        looked += 1
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        if {"status.json", "ledger.jsonl"} & {entry.name for entry in entries}:
            name = folder.relative_to(root).as_posix()
            found[root.resolve().name if name == "." else name] = folder
        elif depth < MAX_DEPTH:
            inside = [e for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
            waiting += [(Path(entry.path), depth + 1) for entry in inside]
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class _Look:
    signature: tuple[Any, ...]
    moment: float
    seen: Glance | None
    error: str


class Shelf:
    """The runs below `root`; asked by many threads, one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._runs: dict[str, Path] = {}
        self._scanned = -float("inf")
        self._looks: dict[str, _Look] = {}
        self._curves: OrderedDict[str, Curves] = OrderedDict()

    def rows(self) -> list[Row]:
        """Return a row per run, those that are running first, then the newest."""
        with self._lock:
            rows = [_row(name, self._look(name), time.time()) for name in self._known()]
        return sorted(rows, key=lambda row: (row["state"] != "running", -(row["written"] or 0.0), row["name"]))

    def curves(self, name: str) -> Row | None:
        """Return the curves of a run, or {"error": sentence}; None when there is no such run."""
        with self._lock:
            if name not in self._known():
                return None
            own = self._curves.setdefault(name, Curves(self._runs[name]))
            self._curves.move_to_end(name)
            while len(self._curves) > MAX_CURVES:
                self._curves.popitem(last=False)
            seen = self._look(name).seen
            try:
                return own.read(seen.first_k if seen else None)
            except (UserError, OSError) as error:
                return {"error": _sentence(error)}

    def _known(self) -> dict[str, Path]:
        if time.monotonic() - self._scanned > SCAN_EVERY_S:
            self._runs, self._scanned = find_runs(self.root), time.monotonic()
            self._looks = {name: look for name, look in self._looks.items() if name in self._runs}
        return self._runs

    def _look(self, name: str) -> _Look:
        run = self._runs[name]
        signature = tuple(_signature(run / file) for file in _FILES)
        known = self._looks.get(name)
        if known is None or known.signature != signature:
            seen, error = None, ""
            try:
                seen = glance(run)
            except (UserError, OSError) as problem:
                error = _sentence(problem)
            known = self._looks[name] = _Look(signature, time.time(), seen, error)
        return known


def _signature(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _sentence(error: Exception) -> str:
    return printable(str(error))


def _row(name: str, look: _Look, now: float) -> Row:
    seen = look.seen
    if seen is None:
        return {"name": name, "state": "damaged", "error": look.error, "written": None}
    left = None if seen.left_s is None else max(0.0, seen.left_s - (now - look.moment))
    return {
        "name": name,
        "title": seen.name,
        "state": seen.state,
        "phase": seen.phase,
        "error": seen.reason or "",
        "epoch": seen.epoch,
        "epochs": seen.epochs,
        "k": seen.num_subspaces,
        "widths": list(seen.widths),
        "scores": {score: _finite(value) for score, value in seen.scores.items()},
        "loss": _finite(seen.loss),
        "images_per_s": _finite(seen.images_per_s),
        "restarts": seen.restarts,
        "left_s": left,
        "written": seen.written,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
