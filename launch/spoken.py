"""Durations as people say them."""

from __future__ import annotations


def spoken(seconds: float) -> str:
    """Return a duration: 12 s, 5 min, 2 h 01 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def ago(seconds: float) -> str:
    """Return how long something is past; what a clock puts into the future is now."""
    days = max(0.0, seconds) / 86400
    return f"{days:.0f} d ago" if days >= 2 else f"{spoken(max(0.0, seconds))} ago"
