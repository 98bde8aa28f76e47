from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from data_shards.errors import UserError
from data_shards.sources import SOURCES, option_defaults, read_source


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_options_with_defaults(name: str) -> None:
    assert callable(importlib.import_module(SOURCES[name][0]).read)
    defaults = option_defaults(name)
    assert "seed" in defaults
    assert all(default is None or isinstance(default, int | float | str) for default in defaults.values())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", r"not a source \(did you mean 'digits'\?\)"),
        ("", "not a source"),
        ("folder", "a path is missing"),
        ("folder:", "a path is missing"),
        ("folder:/does/not/exist", "does not exist"),
        ("digits:/tmp", "takes no path"),
        (f"mura:{__file__}", "is not a folder"),
    ],
)
def test_wrong_sources(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_source(source, {})


def test_options_come_as_text_or_as_values(tmp_path: Path) -> None:
    by_text = read_source("phantoms", {"num_samples": "12", "levels": "2", "label_by": None})
    by_value = read_source("phantoms", {"num_samples": 12, "levels": 2}, size=64)
    assert [record.label for record in by_text.records] == [record.label for record in by_value.records]
    assert read_source("phantoms", {"num_samples": 3}, size=40).default_size == 40
    assert list(tmp_path.iterdir()) == []
