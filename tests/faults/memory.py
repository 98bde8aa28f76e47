"""How much memory something takes at its worst. (getrusage's figure is inherited through exec and never falls.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def peak_mb() -> float:
    """Return the most that this process has held since `grown_mb` began, or since its start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def grown_mb(action: Callable[[], object]) -> float:
    """Return by how much the memory of this process exceeds what it has now, at the worst, while the action runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = peak_mb()
    action()
    return peak_mb() - before
