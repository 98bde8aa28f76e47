"""Sweeps: the product of axes, names that are folders, and what is no axis."""

from __future__ import annotations

import itertools
import os

import pytest

from data_shards.errors import UserError
from launch.sweep import points


def test_points_are_the_product_in_order() -> None:
    found = points(["seed=0,1,2", "optim.lr=1e-3,1e-4"])
    wanted = [(f"seed={s}", f"optim.lr={r}") for s in (0, 1, 2) for r in ("1e-3", "1e-4")]
    assert [point.overrides for point in found] == wanted
    assert [point.name for point in found] == ["_".join(words) for words in wanted]


def test_commas_inside_brackets_belong_to_a_value() -> None:
    (first, second) = points(["model.backbone={name: a, widths: [1, 2]}, {name: b}"])
    assert first.overrides == ("model.backbone={name: a, widths: [1, 2]}",)
    assert second.overrides == ("model.backbone={name: b}",)


@pytest.mark.parametrize("odd", ["../up", "/etc/passwd", "a b", "$(x)", "ä", "x" * 300, "a\nb", "-"])
def test_names_are_one_plain_folder_and_stay_apart(odd: str) -> None:
    names = [point.name for point in points([f"name={odd},{odd}2,plain"])]
    assert len(set(names)) == 3
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert len(name) < 200
        assert os.path.basename(name) == name
        assert not set(name) & set(" $()'\"\\")
    assert names[-1] == "name=plain"


def test_a_longer_sweep_keeps_the_names_of_its_points() -> None:
    short, long = points(["seed=0,1", "name=a b,c"]), points(["seed=0,1,2", "name=a b,c,d"])
    assert {point.name for point in short} < {point.name for point in long}
    assert len({point.name for point in long}) == len(list(itertools.product("012", "acd")))


@pytest.mark.parametrize("axis", ["seed", "seed=", "seed=0,,1", "=1", "a b=1", "seed=1,1", "-x=1", "$(x)=1"])
def test_what_is_no_axis_is_an_error(axis: str) -> None:
    with pytest.raises(UserError, match=r"--sweep"):
        points([axis])


def test_an_axis_given_twice_is_an_error() -> None:
    with pytest.raises(UserError, match="twice"):
        points(["seed=0", "seed=1"])


def test_a_value_that_is_no_text_names_a_folder_all_the_same() -> None:
    (point,) = points(["seed=\ud800"])
    assert point.name.isascii() and point.name.isprintable()
