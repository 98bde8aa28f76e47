"""Settings given beside the file: `a.b=c` on the command line, SUBSPACE__A__B=c in the environment."""

from __future__ import annotations

import math
from typing import Any

from data_shards.errors import UserError
from launch.plain_values import MAX_DEPTH, short
from launch.yaml_file import MAX_DIGITS, parse


def parse_overrides(tokens: list[str]) -> dict[str, Any]:
    """Turn `a.b=c` tokens into {"a.b": value}; values are YAML, so `1e-4`, `true`, `[1, 2]` mean what they say.

    Raises:
        UserError: a token without "=".
    """
    overrides = {}
    for token in tokens:
        name, equals, text = token.partition("=")
        if not equals:
            raise UserError(f"'{token}' is not an override: write section.key=value")
        overrides[name.lstrip("-").replace("-", "_")] = _value(text)
    return overrides


def _value(text: str) -> Any:
    try:
        value = parse(text, "the value")
    except UserError:
        return text
    if isinstance(value, str) and len(value) <= MAX_DIGITS:  # YAML 1.1 reads 1e-4 as a string
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value


def set_at(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `tree["a"]["b"]` for "a.b", with the sections that are not there yet.

    Raises:
        UserError: a part of the name is a value already.
    """
    *parents, last = dotted.split(".")
    if len(parents) > MAX_DEPTH:
        raise UserError(f"'{short(dotted)}' has more than {MAX_DEPTH} levels; settings have two or three")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"'{short(dotted)}' cannot be set: '{short(parent)}' is a value, not a section")
        tree = child
    tree[last] = value


def is_set(tree: dict[str, Any], dotted: str) -> bool:
    """Return whether `tree` has a value at the dotted name."""
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def environment_overrides(environment: dict[str, str]) -> dict[str, Any]:
    """Return overrides from SUBSPACE__SECTION__KEY=value variables."""
    prefix = "SUBSPACE__"
    return {
        name[len(prefix) :].lower().replace("__", "."): _value(text)
        for name, text in sorted(environment.items())
        if name.startswith(prefix)
    }
