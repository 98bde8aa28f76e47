"""The figures of a run over time: learning curves, growth of the embedding, clusters.

Every function returns a matplotlib figure, or None when the run has nothing to show there. The horizontal axis is
always completed epochs: what happens at the end of epoch e (scores, growth) stands at e + 1, what happens at its
beginning (reclustering) at e.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from launch import palette
from launch.report import lineage, theme
from launch.report.collect import Record, Run, score

WIDE, NARROW = 10.4, 4.4  # inches: the page's text width on a desk, and a figure that is legible on a telephone
CURVES = (
    ("nmi", "NMI"),
    ("recall@1", "recall@1"),
    ("map_at_r", "MAP@R"),
    ("macro_recall_at_1", "macro"),
    ("dice", "Dice"),
    ("iou", "IoU"),
    ("loss", "loss"),
)
_MAX_POINTS = 240  # a line of a few hundred points is as exact as the eye


def num_epochs(run: Run) -> float:
    """Return the completed epochs that the pictures span, at least 1."""
    seen = [r["epoch"] + 1 for r in (*run.epochs, *run.steps[-1:]) if isinstance(r.get("epoch"), int)]
    return float(max(seen, default=1))


@dataclass(frozen=True)
class Best:
    """The epoch whose weights were kept: the first with the highest monitored validation score."""

    name: str
    value: float
    epoch: int  # completed epochs


def best_epoch(run: Run) -> Best | None:
    """Return the best epoch by `growth.monitor` of the configuration, None before the first validation."""
    monitor = str((run.config.get("growth") or {}).get("monitor", "nmi"))
    name = "recall@1" if monitor == "recall_at_1" else monitor
    scored = [(score(r["validation"], name), r["epoch"] + 1) for r in run.epochs]
    sign = -1 if name == "loss" else 1
    known = [(sign * value, -epoch) for value, epoch in scored if value is not None]
    return Best(name, sign * max(known)[0], -max(known)[1]) if known else None


def loss_figure(run: Run, width: float = NARROW) -> Figure | None:
    """Loss of the steps: mean and the middle 80 % of what neighbouring steps gave."""
    if not run.steps:
        return None
    position, loss = step_positions(run.steps), np.array([s["loss"] for s in run.steps], dtype=float)
    finite = np.isfinite(loss)
    if not finite.any():
        return None
    centre, mean, low, high = binned(position[finite], loss[finite])
    figure, axes = theme.new_figure(width, 3.0)
    axes.fill_between(centre, low, high, color=theme.ACCENT, alpha=0.16, linewidth=0)
    axes.plot(centre, mean, color=theme.ACCENT)
    axes.set_title("Training loss")
    _time_axis(axes, run)
    axes.set_ylim(bottom=min(0.0, float(low.min())))
    return figure


def step_positions(steps: Sequence[Record]) -> np.ndarray:
    """Return (n,) positions of steps in epochs: step i of the n of epoch e stands at e + (i + 0.5) / n."""
    epochs = np.array([s.get("epoch") or 0 for s in steps], dtype=float)
    _, first, inverse, counts = np.unique(epochs, return_index=True, return_inverse=True, return_counts=True)
    within = np.arange(len(steps)) - first[inverse]
    return epochs + (within + 0.5) / counts[inverse]


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return centre, mean, 10th and 90th percentile of runs of neighbouring points, about 20 or more of many."""
    num_bins = int(np.clip(len(x) // 20, min(len(x), 24), _MAX_POINTS))
    parts = [p for p in np.array_split(np.arange(len(x)), num_bins) if len(p)]
    summary = [(x[p].mean(), y[p].mean(), np.quantile(y[p], 0.1), np.quantile(y[p], 0.9)) for p in parts]
    columns = np.array(summary).reshape(-1, 4).T
    return columns[0], columns[1], columns[2], columns[3]


def score_figure(run: Run, width: float = NARROW) -> Figure | None:
    """Validation scores of every epoch; a line marks the epoch that was best by the monitored score."""
    curves = []
    for name, label in CURVES:
        scored = [(r["epoch"] + 1, score(r["validation"], name)) for r in run.epochs]
        known = np.array([(e, v) for e, v in scored if v is not None], dtype=float)
        if len(known):
            curves.append((label, known))
    if not curves:
        return None
    figure, axes = theme.new_figure(width, 3.0)
    for (label, points), colour in zip(curves, theme.SERIES, strict=False):
        axes.plot(points[:, 0], points[:, 1], color=colour, label=label, marker="o" if len(points) == 1 else None)
    best = best_epoch(run)
    if best is not None:
        axes.axvline(best.epoch, color=theme.INK, linewidth=0.9, zorder=0)
    losses = curves[0][0] == "loss"
    axes.set_title("Validation loss" if losses else "Validation scores")
    _time_axis(axes, run)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), high if losses else min(1.005, high))
    _label_ends(axes, curves)
    return figure


def _label_ends(axes: Axes, curves: Sequence[tuple[str, np.ndarray]]) -> None:
    """Name each curve at its right end, with its last value, instead of in a legend."""
    low, high = axes.get_ylim()
    heights = theme.spread([float(points[-1, 1]) for _, points in curves], 0.085 * (high - low))
    for (label, points), height, colour in zip(curves, heights, theme.SERIES, strict=False):
        axes.annotate(
            f"{label} {points[-1, 1]:.3f}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9.5,
            annotation_clip=False,
        )


def _time_axis(axes: Axes, run: Run, growth: bool = True) -> None:
    axes.set_xlim(0, num_epochs(run))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if growth:
        for split in lineage.splits(run.events):
            axes.axvline(split.epoch, color=theme.MUTED, linewidth=0.9, linestyle=(0, (2, 3)), zorder=0)


def growth_figure(run: Run, width: float = WIDE) -> Figure | None:
    """The embedding's dimensions (vertical) over time, cut into subspaces: every growth splits a band in two."""
    final = run.pictured.scores.get("widths") if run.pictured else None
    parts = lineage.partitions(run.events, final)
    if not parts or len(parts) == 1 == len(parts[0][1]):
        return None  # one block from beginning to end is a sentence, not a figure
    end = num_epochs(run)
    drawn = lineage.bands(parts, end)
    num_dims = sum(parts[0][1])
    figure, axes = theme.new_figure(width, 3.4 if width > NARROW else 3.6)
    for band in drawn:
        _band(axes, band, num_dims, end)
    _mark_moments(axes, run, num_dims, end)
    axes.set_ylim(0, num_dims)
    axes.set_ylabel("dimension of the embedding")
    axes.grid(False)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    _time_axis(axes, run, growth=False)
    axes.set_xlim(0, max(b.end for b in drawn))
    axes.spines[:].set_visible(False)
    _label_last_bands(axes, [b for b in drawn if b.end == max(d.end for d in drawn)], num_dims)
    return figure


def _mark_moments(axes: Axes, run: Run, num_dims: int, end: float) -> None:
    """Write above the bands where K changed and which epoch was kept."""
    moments = [(s.epoch, f"K={s.child + 1}") for s in lineage.splits(run.events)]
    best = best_epoch(run)
    if best is not None:
        axes.axvline(best.epoch, color=theme.INK, linewidth=1.2)
        moments.append((float(best.epoch), "best"))
    for place, (_, text) in zip(theme.spread([m[0] for m in moments], 0.055 * end), moments, strict=True):
        colour = theme.INK if text == "best" else theme.MUTED
        axes.text(place, num_dims * 1.02, text, ha="center", va="bottom", color=colour)


def _band(axes: Axes, band: lineage.Band, num_dims: int, end: float) -> None:
    """Draw one band, a hair too long so that no seam shows, with its width where there is room for it."""
    colour, gap = palette.subspace_colour(band.subspace), num_dims * 0.005
    low, high = band.low + gap, band.low + band.width - gap
    axes.fill_between([band.start, band.end + 0.001 * end], low, high, color=colour, linewidth=0)
    if band.end < end and band.width > 0.09 * num_dims and band.end - band.start > 0.1 * end:
        place = (band.start + 0.012 * end, band.low + band.width / 2)
        axes.text(*place, f"S{band.subspace + 1} · {band.width}", va="center", color=contrast_ink(colour))


def _label_last_bands(axes: Axes, last: Sequence[lineage.Band], num_dims: int) -> None:
    heights = theme.spread([b.low + b.width / 2 for b in last], num_dims * 0.062)
    for band, height in zip(last, heights, strict=True):
        axes.annotate(
            f"S{band.subspace + 1} · {band.width}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )


def cluster_figure(run: Run, width: float = NARROW) -> Figure | None:
    """Share of the training images that each subspace got at every clustering."""
    events = _reclusters(run)
    if not events:
        return None
    num_subspaces = max(len(e["counts"]) for e in events)
    counts = np.array([[*e["counts"], *[0] * (num_subspaces - len(e["counts"]))] for e in events], dtype=float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    edges = np.array([*(float(e.get("epoch") or 0) for e in events), num_epochs(run)])
    figure, axes = theme.new_figure(width, 3.0)
    tops = np.vstack([np.zeros(len(events)), share.T.cumsum(axis=0)])
    for subspace in range(num_subspaces):
        low, high = (np.append(t, t[-1]) for t in (tops[subspace], tops[subspace + 1]))
        axes.fill_between(edges, low, high, step="post", color=palette.subspace_colour(subspace), linewidth=0)
    axes.set_title("Training images per subspace")
    axes.set_ylim(0, 1)
    axes.grid(False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    _time_axis(axes, run, growth=False)
    _label_shares(axes, share[-1])
    return figure


def _label_shares(axes: Axes, share: np.ndarray) -> None:
    middles = [float(m) for m in share.cumsum() - share / 2]
    for subspace, height in enumerate(theme.spread(middles, 0.075)):
        axes.annotate(
            f"S{subspace + 1} · {share[subspace]:.0%}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )


def stability_figure(run: Run, width: float = NARROW) -> Figure | None:
    """Agreement (NMI) of every clustering with the one before it."""
    points = [(e.get("epoch") or 0, e.get("nmi_to_previous")) for e in _reclusters(run)]
    known = np.array([(e, v) for e, v in points if isinstance(v, (int, float)) and np.isfinite(v)], dtype=float)
    if not len(known):
        return None
    figure, axes = theme.new_figure(width, 3.0)
    axes.plot(known[:, 0], known[:, 1], color=theme.ACCENT, marker="o", markersize=4, markeredgewidth=0)
    axes.set_title("Agreement with the clustering before (NMI)")
    axes.set_ylim(0, 1.03)
    _time_axis(axes, run)
    return figure


def _reclusters(run: Run) -> list[Record]:
    latest = {e.get("epoch"): e for e in run.named("recluster") if e.get("counts")}
    return [latest[epoch] for epoch in sorted(latest, key=lambda e: e or 0)]


def contrast_ink(colour: str) -> str:
    """Return black or white for text on `colour`, by its WCAG relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return "#000000" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.25 else theme.WHITE
