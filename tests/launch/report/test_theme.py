"""The figures' common look."""

from __future__ import annotations

import base64
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import palette
from launch.report import figures, theme


def test_svg_follows_light_and_dark_and_repeats() -> None:
    def draw() -> str:
        with theme.style():
            figure, axes = theme.new_figure(4, 3)
            axes.plot([0, 1], [0, 1])
            axes.set_xlabel("epoch < 3 & more")
            return theme.to_svg(figure)

    text = draw()
    assert text == draw()
    ElementTree.fromstring(text)
    assert "prefers-color-scheme:dark" in text
    assert "var(--muted)" in text
    body = text.split("<style>svg{")[0]
    assert not [c for c in (theme.INK, theme.MUTED, theme.HAIR) if c in body]
    assert "DejaVu" not in body
    assert "http://www.w3.org" in body


def test_data_uri_round_trip() -> None:
    assert base64.b64decode(theme.data_uri("<svg/>", "svg+xml").split(",")[1]) == b"<svg/>"
    assert theme.data_uri(b"\x00\x01", "png").startswith("data:image/png;base64,")


@given(st.lists(st.floats(0, 1), max_size=8))
def test_spread_keeps_order_and_distance(positions: list[float]) -> None:
    moved = theme.spread(positions, 0.1)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    assert all(moved[b] - moved[a] > 0.09 for a, b in pairwise(order))
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


@pytest.mark.parametrize("colour", [*palette.SUBSPACES, *theme.SERIES])
def test_text_on_a_band_has_contrast(colour: str) -> None:
    def luminance(code: str) -> float:
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(colour), luminance(figures.contrast_ink(colour))))
    assert (high + 0.05) / (low + 0.05) > 3.4
