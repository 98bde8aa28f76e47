"""Durations in words."""

from __future__ import annotations

import pytest

from launch.spoken import ago, spoken


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (300, "5 min"), (7260, "2 h 01 min"), (90000, "25 h 00 min")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s ago"), (60, "60 s ago"), (7300, "2 h 02 min ago"), (3 * 86400, "3 d ago")]
)
def test_what_is_past(seconds: float, text: str) -> None:
    assert ago(seconds) == text
