"""One entry of a table and the arguments a user gave it -> the part.

The arguments of an entry are those of its constructor, checked against the signature, so the constructor is the schema.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from data_shards.errors import UserError, nearest_of
from launch.plain_values import short
from launch.sections import Component

# Arguments that the caller gives, not the user.
GIVEN = {
    "model",
    "make_optimiser",
    "pieces",
    "cached",
    "deterministic",
    "precision",
    "clip_norm",
    "average_decay",
    "timeout_s",
    "vectors",
    "labels",
    "triplets",
    "tuples",
    "generator",
    "seed",
    "in_channels",
    "num_dims",
    "num_classes",
    "widths",
    "num_branches",
    "level_channels",
    "image_size",
    "shape_side",
    "make_norm",
    "sync_norm",
    "depth",
    "backbone",
}


def entry(table: Mapping[str, Callable[..., Any]], component: Component, where: str) -> Callable[..., Any]:
    """Return the table's entry with the user's arguments bound.

    Raises:
        UserError: unknown name or argument (the nearest one is named), or an argument of another type.
    """
    made = _named(table, component.name, where)
    parameters = inspect.signature(made, eval_str=True).parameters
    known = [name for name in parameters if name not in GIVEN or name == "widths"]
    for name in component.arguments:
        if name not in known:
            raise UserError(f"{where}.{name}: {component.name} has no such argument{nearest_of(name, known)}")
    typed = {name: _typed(f"{where}.{name}", value, parameters[name]) for name, value in component.arguments.items()}
    return partial(made, **typed)


def _named(table: Mapping[str, Callable[..., Any]], name: str, where: str) -> Callable[..., Any]:
    library, colon, rest = name.partition(":")
    try:
        if colon and library + colon in table:
            found: Callable[..., Any] = table[library + colon](rest)
            return found
    except UserError as error:
        raise UserError(f"{where}.name: {error}") from None
    if name in table:
        return table[name]
    raise UserError(
        f"{where}.name: unknown '{short(name)}'{nearest_of(name, list(table))}; there are {', '.join(table)}"
    )


def constructed(where: str, make: Callable[..., Any], *arguments: Any, **given: Any) -> Any:
    """Call what `entry` returned; values that torch refuses are the user's mistake too."""
    try:
        return make(*arguments, **given)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{where}: these arguments make no part: {short(str(error).partition(chr(10))[0])}") from error


def _typed(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    """Return a user's value as the type that the constructor names."""
    kind: Any = TypeAdapter(parameter.annotation, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(f"{name}: {reason[0].lower() + reason[1:]}, got {short(repr(value))}") from None
