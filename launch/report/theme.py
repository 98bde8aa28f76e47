"""How the figures look, in one place: colours, type, and an SVG that follows the reader's light or dark page.

Figures are drawn by matplotlib in the colours of the light page. Their SVG keeps text as text and has its few
neutral colours replaced by CSS variables, so the same picture is right on a white and on a black page; the PNG in
RUN/plots is the light one, for slides and papers.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, HAIR, PAPER = "#1b1d22", "#6a6f7a", "#e3e5e9", "#ffffff"
_DARK = {INK: "#e9eaed", MUTED: "#9ba1ad", HAIR: "#30343c", PAPER: "#14161a"}
_NAMES = {INK: "--ink", MUTED: "--muted", HAIR: "--hair", PAPER: "--paper"}

ACCENT = "#2f6fb3"
SERIES = ("#2f6fb3", "#bd6319", "#2f8564", "#8a63b5")  # curves: blue, orange, green, violet
# Classes: ten hues that keep apart for colour-blind readers and on black and white (after Tol 2021, "Colour schemes").
CLASSES = (
    "#4477aa", "#ee7733", "#228833", "#cc3355", "#aa6fc5", "#a8803a", "#33a9c4", "#e57fb0", "#8a9a1f", "#7a7f8c",
)  # fmt: skip
REST = "#a9adb6"  # classes beyond those that have a colour
# Rates in a matrix: the more, the less transparent, so that the page's own colour is the zero.
HEAT = LinearSegmentedColormap.from_list("heat", ["#2f6fb322", "#2f6fb388", "#1f5594ff"])
WHITE = "#fefefe"  # white that stays white on a dark page, unlike PAPER

_FONTS = "Inter, system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # for the layout only; the SVG takes the reader's own sans serif
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": HAIR,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": HAIR,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "subspace",
    "path.simplify": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this: the look above, no display, nothing left behind in matplotlib's settings."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of width x height inches and its axes, without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def quiet(axes: Axes) -> None:
    """Take away frame, ticks and grid: for maps, where coordinates mean nothing."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """Return the figure as PNG bytes on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor="white")
    return stream.getvalue()


def to_svg(figure: Figure) -> str:
    """Return the figure as an SVG whose neutral colours follow `prefers-color-scheme`."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", dpi=220, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var({name})")
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", _FONTS, text)
    return text.replace("</svg>", f"<style>{_variables()}</style></svg>")


def _variables() -> str:
    light = ";".join(f"{name}:{colour}" for colour, name in _NAMES.items())
    dark = ";".join(f"{name}:{_DARK[colour]}" for colour, name in _NAMES.items())
    return f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}text{{font-variant-numeric:tabular-nums}}"


def data_uri(content: bytes | str, kind: str) -> str:
    """Return `content` as a data: address, so that the page needs no other file."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Return positions moved apart to at least `gap`, in the same order, so that labels do not overlap."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved = list(positions)
    for _ in range(100):
        clash = False
        for low, high in pairwise(order):
            overlap = gap - (moved[high] - moved[low])
            if overlap > 1e-9:
                moved[low] -= overlap / 2
                moved[high] += overlap / 2
                clash = True
        if not clash:
            break
    return moved
