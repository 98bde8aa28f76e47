"""Settings beside the file: what a word stands for, and where it may go."""

from __future__ import annotations

import pytest

from data_shards.errors import UserError
from launch.overrides import environment_overrides, is_set, parse_overrides, set_at


def test_values_are_yaml() -> None:
    found = parse_overrides(
        ["a.b=1e-4", "a.c=true", "a.d=[1, 2]", "a.e=null", "a.f=text", "a.g=x=y", "train.samples-per-class=2"]
    )
    assert found == {
        "a.b": 1e-4,
        "a.c": True,
        "a.d": [1, 2],
        "a.e": None,
        "a.f": "text",
        "a.g": "x=y",
        "train.samples_per_class": 2,
    }


@pytest.mark.parametrize("text", ["[", "*x", "!!python/name:os.system", "[" * 10_000, "nan", "1e999", "9" * 5000, ""])
def test_what_is_no_value_stays_text(text: str) -> None:
    assert parse_overrides([f"a={text}"]) == {"a": text or None}


def test_environment() -> None:
    given = {"SUBSPACE__OPTIM__LR": "1e-3", "SUBSPACE__SEED": "3", "SUBSPACE_OTHER": "1"}
    assert environment_overrides(given) == {"optim.lr": 1e-3, "seed": 3}


def test_set_at_makes_sections_and_leaves_values_alone() -> None:
    tree: dict = {"seed": 3}
    set_at(tree, "a.b.c", 1)
    assert tree == {"seed": 3, "a": {"b": {"c": 1}}}
    assert is_set(tree, "a.b.c") and not is_set(tree, "a.c") and not is_set(tree, "seed.x")
    with pytest.raises(UserError, match="'seed' is a value"):
        set_at(tree, "seed.x", 1)
    with pytest.raises(UserError, match="levels"):
        set_at(tree, "a." * 1000 + "a", 1)
