"""The reference of settings against pydantic's own account of the schema, and the keys that pages name against both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from docs.generators import config_keys, parts
from launch.config import RunConfig
from tests.docs.pages import PAGES, ROOT

HISTORY = {"log.md", "decisions.md", "faults.md", "CHANGELOG.md"}
SECTIONS = "data|model|objective|train|optim|cluster|growth|evaluate|checkpoint|ray|launch"
NAMED = re.compile(rf"(?<![\w./-])(?:{SECTIONS})(?:\.[a-z]\w*)+(?![\w/(])")  # no paths, no calls
FILES = ("py", "yaml", "md", "log", "json", "safetensors", "embedder")


def in_schema(schema: Mapping[str, Any], node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the dotted name of every property, and whether it is a section, from a JSON schema."""
    for name, value in node.get("properties", {}).items():
        choices = [value, *value.get("anyOf", []), *value.get("allOf", [])]
        found = [schema["$defs"][each["$ref"].split("/")[-1]] for each in choices if "$ref" in each]
        section = next((each for each in found if not each.get("additionalProperties")), None)
        yield prefix + name, section is not None
        if section is not None:
            yield from in_schema(schema, section, f"{prefix}{name}.")


SCHEMA = RunConfig.model_json_schema()
NAMES = dict(in_schema(SCHEMA, SCHEMA))
KEYS = {key.name: key for group in config_keys.groups() for key in group.keys}


def test_no_key_is_missing() -> None:
    top_sections = {name for name, section in NAMES.items() if section and "." not in name}
    assert set(KEYS) | top_sections == set(NAMES)
    assert not set(KEYS) & top_sections
    assert {group.name for group in config_keys.groups()} == {"", *(name for name, section in NAMES.items() if section)}


@pytest.mark.parametrize("name", sorted(KEYS))
def test_every_key_is_described(name: str) -> None:
    key = KEYS[name]
    assert len(key.meaning.split()) >= 2, f"give {name} a description in launch/sections.py"
    assert key.values


def test_every_section_is_described() -> None:
    assert all(group.about for group in config_keys.groups())


def test_bounds_and_defaults_are_told() -> None:
    assert KEYS["data.max_corrupt"].values == "number, at least 0, less than 1"
    assert KEYS["data.max_corrupt"].default == "`0.01`"
    assert KEYS["data.resize"].values == "integer, more than 0, at most 16,384, or `null`"
    assert KEYS["data.shards"].default == "required"
    assert KEYS["model.backbone"].default == "`{name: resnet50}`"
    assert KEYS["growth.select"].values == "`threshold`, `top_fraction`"
    assert KEYS["objective.local.shape"].default == "absent"
    assert KEYS["launch.trackers"].default == "`[tensorboard]`"


def test_the_page_has_a_row_for_every_key() -> None:
    page = config_keys.page()
    assert re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE) == list(KEYS)


def test_parts_have_the_arguments_that_are_accepted() -> None:
    assert dict(parts.arguments("model.gate", parts.TABLES["model.gate"]["convolutions"]))["branches"] == "`1`"
    assert "| `margin` |" in parts.page()
    assert "`widths` `[32, 64, 128]`" in parts.page()
    assert "`MultiSimilarityMiner`" in parts.page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_that_pages_name_exist(page: Path) -> None:
    if page.name in HISTORY:
        pytest.skip("tells of what was")
    for name in NAMED.findall(page.read_text(encoding="utf-8")):
        assert name.split(".")[-1] in FILES or _is_module(name) or name in NAMES or _is_argument(name), name


def _is_argument(name: str) -> bool:
    """Return whether a name is an argument of some entry of a part."""
    setting, _, argument = name.rpartition(".")
    table = parts.TABLES.get(setting, {})
    known = {each for make in table.values() for each, _ in parts.arguments(setting, make)}
    return bool(table) and argument in {"name", "levels", "norm", *known}


def _is_module(name: str) -> bool:
    package, module, *_ = name.split(".")
    return package in ("launch", "cluster") and find_spec(f"{package}.{module}") is not None
