"""The differences to the reference as a forest plot: a panel per metric, a line per method, zero is the reference."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from launch.compare.comparison import Block, Row
from launch.compare.results import title
from launch.compare.words import MINUS
from launch.report import theme
from launch.report.figures import NARROW

_ROW, _HEAD = 0.3, 0.9  # inches
_MAX_TITLE = 26


def difference_figure(block: Block, metrics: Sequence[str], width: float) -> Figure | None:
    """Draw all differences of a dataset; None when there are none."""
    rows = [row for row in block.rows if row.differences]
    if not rows:
        return None
    across = min(len(metrics), 2 if width <= NARROW else 4)
    down = -(-len(metrics) // across)
    figure = Figure(figsize=(width, down * (_HEAD + _ROW * len(rows))), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.06)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, metric in zip(grid, metrics, strict=False):
        _panel(axes, rows, metric)
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    grid[0].set_yticks(range(len(rows)), [_short(row.title) for row in rows])
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    axes.axvline(0, color=theme.MUTED, linewidth=1.0, zorder=1)
    for place, row in enumerate(rows):
        found = row.differences[metric]
        colour = _colour(found.low, found.high)
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.2, zorder=2)
        axes.plot(found.difference, place, "o", color=colour, markersize=5.5, markeredgewidth=0, zorder=3)
    axes.set_title(title(metric))
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", MINUS) if value else "0"))
    axes.margins(x=0.08)
    for label in axes.get_yticklabels():
        label.set_color(theme.INK)


def _colour(low: float, high: float) -> str:
    """Blue is better than the reference, orange worse, grey either."""
    return theme.SERIES[0] if low > 0 else theme.SERIES[1] if high < 0 else theme.MUTED


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TITLE else f"{text[: _MAX_TITLE - 1]}…"
