"""What any setting may be: a line of text, a finite number of 64 bits, true, false, none, lists and maps of them."""

from __future__ import annotations

import math
from typing import Any

MAX_DEPTH = 32
MAX_TEXT = 4096  # characters, as many as a path may have


def check_values(value: Any, place: tuple[str, ...] = ()) -> None:
    """Raise ValueError for what no setting takes, in free-form parts too: it becomes a name, a path, a number.

    `place` are the keys that lead to `value`.
    """
    name = f"'{short('.'.join(place))}'" if place else "it"
    if len(place) > MAX_DEPTH:
        raise ValueError(f"{name} has more than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str) or not key.isprintable():
                raise ValueError(f"{name} has a key that is not plain text: {short(ascii(key))}")
            check_values(inner, (*place, key))
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            check_values(inner, (*place, str(i)))
    elif problem := _problem(value):
        raise ValueError(f"{name} {problem}")


def _problem(value: Any) -> str | None:
    if isinstance(value, str) and not value.isprintable():
        return f"holds a line break or a control character: {short(ascii(value))}"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"is text of more than {MAX_TEXT} characters"
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return "is a number of more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, not a finite number"
    if value is not None and not isinstance(value, (str, int, float)):
        return f"is a {type(value).__name__}, which no setting takes"
    return None


def short(text: str) -> str:
    """Return text of at most 100 characters."""
    return text if len(text) <= 100 else f"{text[:97]}..."
