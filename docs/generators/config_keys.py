"""The reference of settings: every key of the schema with its values, default and meaning, as Markdown.

Keys are read from the pydantic models of launch/config.py and launch/sections.py, so nothing is written twice.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launch.config import RunConfig
from launch.sections import Component

PLAIN = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", dict: "mapping"}
LIMITS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most", "min_length": "length at least"}
NUMBERS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, and in words what it takes, what it is if nothing is said, and what it means."""

    name: str
    values: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Group:
    """One section: its dotted name ("" at the top), its docstring, whether it may be absent, and its own keys."""

    name: str
    about: str
    optional: bool
    keys: tuple[Key, ...]


def groups(model: type[BaseModel] = RunConfig, name: str = "", optional: bool = False) -> Iterator[Group]:
    """Yield the sections of a model, itself first, depth first."""
    prefix = f"{name}." if name else ""
    fields = model.model_fields.items()
    keys = tuple(_key(f"{prefix}{field}", info) for field, info in fields if name or not _section(info))
    yield Group(name, inspect.getdoc(model) or "", optional, keys)
    for field, info in fields:
        if found := _section(info):
            yield from groups(found, f"{prefix}{field}", info.default is None)


def page() -> str:
    """Return the Markdown of all sections."""
    lines: list[str] = []
    for group in groups():
        level = "##" if "." not in group.name else "###"
        about = f"{group.about} Absent if not given." if group.optional else group.about
        lines += [f"{level} {group.name or 'Top level'}", "", about, ""]
        lines += ['<div class="stacked" markdown>', "", "| key | values | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{key.name}` | {key.values} | {key.default} | {_cell(key.meaning)} |" for key in group.keys]
        lines += ["", "</div>", ""]
    return "\n".join(lines)


def _key(name: str, info: FieldInfo) -> Key:
    found = _section(info)
    if found is not None:
        about = info.description or (inspect.getdoc(found) or "").split("\n")[0].rstrip(".")
        return Key(name, "keys below", "absent" if info.default is None else "", about)
    metadata = [_limit(each) for each in info.metadata]
    return Key(
        name, _values(info.annotation, name, list(filter(None, metadata))), _default(info), info.description or ""
    )


def _section(info: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section of its own."""
    for kind in (info.annotation, *get_args(info.annotation)):
        if inspect.isclass(kind) and issubclass(kind, BaseModel) and kind is not Component:
            return kind
    return None


def _values(kind: Any, name: str, limits: list[str]) -> str:
    """Return in words what a type takes."""
    if get_origin(kind) is Annotated:
        kind, *metadata = get_args(kind)
        for each in metadata:
            limits += filter(None, map(_limit, getattr(each, "metadata", [each])))
    if get_origin(kind) in (Union, types.UnionType):
        inner = [each for each in get_args(kind) if each is not type(None)]
        return ", ".join([*(_values(each, name, limits) for each in inner), "or `null`"])
    if kind is Component:
        return f"a [part](parts.md#{name.replace('.', '')})"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        if rest == [...]:
            return f"list of {_values(first, name, [])}" if get_origin(first) is Literal else "list of numbers"
        return f"{NUMBERS[1 + len(rest)]} numbers"
    return ", ".join([PLAIN[get_origin(kind) or kind], *limits])


def _limit(constraint: Any) -> str:
    """Return one bound in words, "" for what is none."""
    for name, words in LIMITS.items():
        value = getattr(constraint, name, None)
        if value is not None:
            return f"{words} {value:,}" if isinstance(value, int) else f"{words} {value:g}"
    return ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    value = value.model_dump() if isinstance(value, BaseModel) else list(value) if isinstance(value, tuple) else value
    if isinstance(value, list):
        value = [round(each, 4) if isinstance(each, float) else each for each in value]
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    return f"`{text}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
