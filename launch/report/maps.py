"""Pictures of one split's embedding: which classes are taken for each other, and where they lie.

Legend: N images, D embedding width, C classes, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from data_shards import keyed
from launch.report import figures, theme
from launch.report.collect import Arrays, Evaluation

MAX_TSNE_POINTS = 2000  # about 10 s on one core; more points do not make a page-wide map clearer
MAX_MATRIX_CLASSES = 20


@dataclass(frozen=True)
class Confusion:
    """Class of the query against class of its nearest neighbour."""

    classes: np.ndarray  # (C,) int64 labels, ascending
    counts: np.ndarray  # (C, C) int64; row = query, column = neighbour

    @property
    def rates(self) -> np.ndarray:
        """Rows as shares, (C, C); a row without queries is zero."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)

    def mistakes(self, limit: int) -> list[tuple[int, int, int, float]]:
        """Return (query label, neighbour label, count, share of the query class) of the most frequent errors."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        rows, columns = np.unravel_index(order, wrong.shape)
        names = self.classes.tolist()
        found = [(r, c) for r, c in zip(rows.tolist(), columns.tolist(), strict=True) if wrong[r, c]]
        return [(names[r], names[c], int(wrong[r, c]), float(self.rates[r, c])) for r, c in found]


def nearest_confusion(arrays: Arrays) -> Confusion:
    """Count classes of first neighbours.

    Queries that have nothing to find are left out, as in recall@1, so the mean of the diagonal rates is the macro
    recall@1.
    """
    classes, index = np.unique(arrays.labels, return_inverse=True)
    used = arrays.queries()
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (index[used], index[arrays.neighbours[used, 0]]), 1)
    return Confusion(classes, counts)


def confusion_figure(evaluation: Evaluation, confusion: Confusion) -> Figure | None:
    """Confusion as a matrix; None for one class, and for more than can be told apart."""
    if not 2 <= len(confusion.classes) <= MAX_MATRIX_CLASSES:
        return None
    rates = confusion.rates
    names = [short(evaluation.class_name(int(label))) for label in confusion.classes]
    figure, axes = theme.new_figure(figures.NARROW, figures.NARROW)
    axes.imshow(np.ma.masked_less(rates, 0.005), cmap=theme.HEAT, vmin=0, vmax=1, interpolation="nearest")
    slanted: Any = {"rotation": 50, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("class of the nearest neighbour")
    axes.set_ylabel("class of the query")
    if len(names) <= 12:
        _write_rates(axes, rates)
    return figure


def _write_rates(axes: Axes, rates: np.ndarray) -> None:
    size = 8.5 if len(rates) <= 10 else 7
    for (row, column), rate in np.ndenumerate(rates):
        if rate >= 0.005:
            ink = theme.WHITE if rate > 0.6 else theme.INK
            text = f"{100 * rate:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)


def class_recall_figure(confusion: Confusion) -> Figure:
    """How many classes have which recall@1: what a matrix of hundreds of classes cannot show."""
    rates = confusion.rates.diagonal()[confusion.counts.sum(axis=1) > 0]
    figure, axes = theme.new_figure(figures.NARROW, 3.0)
    axes.hist(rates, bins=np.linspace(0, 1, 11).tolist(), color=theme.ACCENT, rwidth=0.9)
    axes.set_title("Recall@1 of the classes")
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("recall@1 of a class")
    axes.set_ylabel("classes")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def short(name: str, limit: int = 18) -> str:
    """Return a name of at most `limit` characters; the end is kept, since it is what tells long names apart."""
    return name if len(name) <= limit else f"{name[: limit // 3]}…{name[-(limit - limit // 3 - 1) :]}"


def sample_rows(num_rows: int, limit: int, seed: int) -> np.ndarray:
    """Return up to `limit` row numbers, ascending; a keyed draw without replacement."""
    if num_rows <= limit:
        return np.arange(num_rows)
    return np.sort(keyed.generator(seed, "report map").permutation(num_rows)[:limit])


def has_shape(vectors: np.ndarray) -> bool:
    """Return whether (N, D) vectors can be drawn: finite, and not collapsed to a point or a line.

    t-SNE ends the process on vectors that are all alike, and a map of them would be no picture.
    """
    if min(vectors.shape) < 2 or not np.isfinite(vectors).all():
        return False
    variances = np.linalg.eigvalsh(np.cov(vectors, rowvar=False, dtype=np.float64))  # ascending
    return bool(variances[-2] > 1e-8)


def pca_map(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 2) principal coordinates and the (2,) shares of variance they hold."""
    fitted = PCA(2, svd_solver="full").fit(vectors)
    return fitted.transform(vectors), fitted.explained_variance_ratio_


def tsne_map(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return (N, 2) t-SNE coordinates (van der Maaten and Hinton 2008), one thread, keyed seed."""
    start = keyed.key(seed, "report tsne") % 2**32
    perplexity = float(min(30.0, (len(vectors) - 1) / 3))
    with threadpool_limits(1):
        return TSNE(2, init="pca", perplexity=perplexity, random_state=start, n_jobs=1).fit_transform(vectors)


def class_colours(evaluation: Evaluation) -> dict[int, str]:
    """Return {label: colour} of the ten largest classes, by label; the others are drawn in grey."""
    assert evaluation.arrays is not None
    classes, sizes = np.unique(evaluation.arrays.labels, return_counts=True)
    largest = np.sort(classes[np.argsort(-sizes, kind="stable")[: len(theme.CLASSES)]])
    return dict(zip(largest.tolist(), theme.CLASSES, strict=False))


def gathering_place(points: np.ndarray, labels: np.ndarray, label: int) -> np.ndarray | None:
    """Return the (2,) median of a class in a map if most points around it are of the class, else None."""
    own = points[labels == label]
    if not len(own):
        return None
    middle = np.median(own, axis=0)
    nearest = np.argsort(((points - middle) ** 2).sum(axis=1), kind="stable")[: min(10, len(own))]
    return middle if (labels[nearest] == label).mean() > 0.6 else None


def map_figure(evaluation: Evaluation, points: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Scatter (n, 2) points by class; a class has its name written where it gathers."""
    figure, axes = theme.new_figure(figures.NARROW, figures.NARROW)
    colours = class_colours(evaluation)
    rest = points[~np.isin(labels, list(colours))]
    size = float(np.clip(14000 / max(len(points), 1), 8, 28))
    axes.scatter(rest[:, 0], rest[:, 1], s=size * 0.6, c=theme.REST, linewidths=0, alpha=0.5, rasterized=True)
    for label, colour in sorted(colours.items(), key=lambda item: -int((labels == item[0]).sum())):  # rare ones on top
        own = points[labels == label]
        axes.scatter(own[:, 0], own[:, 1], s=size, c=colour, linewidths=0, alpha=0.8, rasterized=True)
    for label in colours:
        middle = gathering_place(points, labels, label)
        if middle is None:
            continue
        name = short(evaluation.class_name(int(label)))
        text = axes.text(middle[0], middle[1], name, ha="center", va="center", weight="bold", fontsize=10)
        text.set_path_effects([withStroke(linewidth=3.2, foreground=theme.PAPER)])
    axes.set_title(title)
    theme.quiet(axes)
    axes.set_aspect("equal", adjustable="datalim")
    return figure
