"""YAML: plain values are read as always; what unfolds, names code or is no file of a person is refused at once."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import UserError
from launch.yaml_file import parse, read

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_what_is_written_plainly_is_read_back(value: Any) -> None:
    assert parse(yaml.safe_dump(value), "it") == value


def test_dates_and_merges_are_plain_text() -> None:
    assert parse("{a: 2001-01-01, <<: 3, b: =}", "it") == {"a": "2001-01-01", "<<": 3, "b": "="}
    assert yaml.safe_load("2001-01-01") == date(2001, 1, 1)  # what it would be otherwise


LAUGHS = "a: &a [x,x]\n" + "".join(f"{y}: &{y} [*{x},*{x}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "line 2: aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: !!python/object/apply:os.system [id]", "line 1: tags"),
        ("a: !!str 3", "tags"),
        ("a: 1\nb: 2\na: 3", "line 1: a key is given twice"),
        ("a: {b: 1, b: 2}", "twice"),
        ("[" * 40 + "]" * 40, "levels"),
        ("[" * 100_000, "levels"),
        ("[" + "1," * 30_000 + "]", "values"),
        ("a: " + "9" * 100, "digits"),
        ("a: " + "1:" * 100 + "1", "digits"),
        ("a: 1." + "0" * 100, "digits"),
        ("x" * 300_000, "KiB"),
        ("a: 1\n---\nb: 1", "document"),
        ("a: [", "line [12]: "),
        ("a: \x07", "character"),
        ("? [1]\n: 2", "line [12]: "),
        ("a: \ud800", "surrogates"),
    ],
)
def test_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"it is not valid YAML: .*{reason}") as refusal:
        parse(text, "it")
    assert refusal.value.exit_code == 2 and str(refusal.value).isprintable() and len(str(refusal.value)) < 300


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"a: \xff")
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "large").write_text(" " * 300_000)
    (tmp_path / "bom").write_text("a: 1", encoding="utf-8-sig")
    (tmp_path / "link").symlink_to("bom")
    assert read(tmp_path / "bom") == read(tmp_path / "link") == {"a": 1}
    reasons = dict.fromkeys(("pipe", ".", "/dev/zero"), "not a plain file")
    reasons |= {"a\0": "null byte", "absent": "No such file", "binary": "byte 3 is not UTF-8"}
    reasons |= {"list": "holds no configuration", "large": "bytes"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason):
            read(tmp_path / name)
