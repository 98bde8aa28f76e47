"""Checked settings: the first mistake in one sentence, with the nearest name that exists."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_shards.errors import UserError
from launch.mistakes import validated


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int = 1
    kind: Literal["wide", "narrow"] = "wide"


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    part: Part = Part()
    parts: dict[str, Part] = {}
    given: int = Field(alias="set", default=0)
    needed: str

    @model_validator(mode="after")
    def _check(self) -> Whole:
        if self.needed == "nothing":
            raise ValueError("needed must be something")
        return self


def sentence(tree: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        validated(Whole, tree, "a file")
    return str(caught.value)


def test_a_sound_tree_becomes_the_model() -> None:
    found = validated(Whole, {"needed": "x", "set": 3, "parts": {"a": {"width": 2}}}, "a file")
    assert (found.given, found.parts["a"].width) == (3, 2)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({}, "a file: 'needed' is missing"),
        ({"needed": "x", "parst": {}}, "a file: unknown key 'parst' (did you mean 'part'?)"),
        ({"needed": "x", "part": {"widht": 2}}, "a file: unknown key 'part.widht' (did you mean 'width'?)"),
        ({"needed": "x", "parts": {"a": {"knid": 2}}}, "a file: unknown key 'parts.a.knid' (did you mean 'kind'?)"),
        ({"needed": "x", "sett": 2}, "a file: unknown key 'sett' (did you mean 'set'?)"),
        ({"needed": "nothing"}, "a file: needed must be something"),
    ],
)
def test_the_first_mistake_in_one_sentence(tree: dict[str, Any], expected: str) -> None:
    assert sentence(tree) == expected


def test_a_wrong_value_is_shown_and_cut_short() -> None:
    assert sentence({"needed": "x", "part": {"width": "many"}}).endswith("got 'many'")
    assert len(sentence({"needed": "x", "part": {"kind": "w" * 10_000}})) < 400


def test_a_tree_that_is_no_settings_at_all_is_refused_before_it_is_looked_at() -> None:
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"part": deep}
    assert sentence(deep).startswith("a file: ")
