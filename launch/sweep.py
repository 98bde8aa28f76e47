"""The points of a sweep: every combination of values, each with a name that is safe as a folder.

A point's name depends on its own values only, so a sweep can be extended and its finished points keep their folders.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_shards.errors import UserError

_LONGEST = 120  # of a folder's name; filesystems take 255 bytes


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    overrides: tuple[str, ...]


def points(axes: Sequence[str]) -> list[Point]:
    """Return the product of axes such as "seed=0,1,2", the last one running fastest.

    Raises:
        UserError: an axis that is none, or is given twice.
    """
    named = dict(_axis(text) for text in axes)
    if len(named) < len(axes):
        raise UserError("--sweep names a setting twice; give all its values at once: --sweep seed=0,1,2")
    combinations = itertools.product(*([f"{name}={value}" for value in values] for name, values in named.items()))
    return [Point(_folder("_".join(words)), tuple(words)) for words in combinations]


def _axis(text: str) -> tuple[str, list[str]]:
    name, _, listed = text.partition("=")
    values = _split(listed)
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name) or not all(values):
        raise UserError(f"--sweep {text!r} is not SETTING=VALUE,VALUE,... as in --sweep optim.lr=1e-3,1e-4")
    if len(set(values)) < len(values):
        raise UserError(f"--sweep {text!r} has a value twice")
    return name, values


def _split(listed: str) -> list[str]:
    """Split at commas that are not inside brackets or braces."""
    depth, values = 0, [""]
    for letter in listed:
        depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _folder(name: str) -> str:
    """Return the name itself where it is plain and short, else what is plain of it and a hash."""
    plain = re.sub(r"[^\w.=+-]+", "-", name, flags=re.ASCII)[:_LONGEST]
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return plain if plain == name else f"{plain}-{digest[:8]}"
