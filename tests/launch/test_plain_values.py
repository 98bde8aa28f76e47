"""What a setting may be."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from launch.plain_values import check_values, short


def test_plain_values_pass() -> None:
    check_values({"a": [1, -(1 << 63), 2.5, True, None, "ä b/c", {"ö": {}}], "b": (1, 2)})


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"a": {"b": "x\ny"}}, r"'a\.b' holds a line break or a control character: 'x\\ny'"),
        ({"a": ["\x1b[31m"]}, r"'a\.0' holds a line break"),
        ({"a": "\u202e"}, "control character"),
        ({"a": "\ud800"}, "control character"),
        ({"a": "x" * 5000}, "more than 4096 characters"),
        ({"a": 1 << 63}, "'a' is a number of more than 64 bits"),
        ({"a": 10**5000}, "64 bits"),
        ({"a": float("nan")}, "'a' is nan, not a finite number"),
        ({"a": [float("-inf")]}, "finite"),
        ({1: 2}, "it has a key that is not plain text: 1"),
        ({"a": {"\n": 2}}, r"'a' has a key that is not plain text: '\\n'"),
        ({"a": date(2001, 1, 1)}, "'a' is a date, which no setting takes"),
        ({"a": b"x"}, "'a' is a bytes"),
        (nested(40), "more than 32 levels"),
    ],
)
def test_others_are_named(value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        check_values(value)
    assert str(refusal.value).isprintable()


def test_short() -> None:
    assert short("x" * 100) == "x" * 100
    assert len(short("x" * 101)) == 100
