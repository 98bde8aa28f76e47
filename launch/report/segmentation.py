"""Pictures of segmentations, and the page of `subspace segment`.

Which images are shown is said by their scores: best, median and worst of the first method, never a choice.

Legend: N scored images, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from data_shards import keyed
from data_shards.evaluation import image_view
from data_shards.files import write_text
from launch import pages
from launch.report import figures, theme
from launch.report.gallery import Gallery
from launch.report.likeness import as_picture, show
from launch.report.thumbnails import overlay
from trainer.segmentation.protocol import Result

if TYPE_CHECKING:
    from launch.segment import Segmented

NAMES = {
    "attention": "attention",
    "cluster": "first cluster",
    "cluster_cut": "cluster, chosen cut",
    "region": "nearest region",
    "grad_cam": "Grad-CAM",
    "unet_attention": "U-Net on attention",
    "unet_cluster": "U-Net on the cluster",
    "unet_grad_cam": "U-Net on Grad-CAM",
    "unet_supervised": "U-Net on true masks",
    "everything": "all foreground",
    "grey_level": "one grey level",
    "green_level": "one level of green",
    "otsu": "Otsu's grey level",
}
SIMPLE = ("everything", "grey_level", "green_level", "otsu")
TRUE, PREDICTED = "#33e0ff", "#ffb000"  # on skin, on lesions, on gray scans and on heat
_CELL = 1.3  # inches
_Cell = Callable[[Axes, int], None]


def write_pictures(found: Segmented, folder: Path, name: str) -> None:
    """Write overlays.png, dice.png and index.html, one page that needs nothing else."""
    gallery = Gallery()
    page = render(found, gallery, name)
    gallery.save(folder)
    write_text(folder / "index.html", page)


def render(found: Segmented, gallery: Gallery, name: str) -> str:
    """Return the page as HTML; its figures are left in `gallery`."""
    scores = found.scores
    means = "; ".join(f"{NAMES[n]} {m['dice']['mean']:.3f}" for n, m in scores["methods"].items())
    dice = gallery.add(
        "dice",
        lambda width: dice_figure(found, width),
        f"Dice of every image by method. Means: {means}.",
        "A dot is an image, the bar the mean with its 95 % interval.",
        wide=True,
    )
    overlays = gallery.add(
        "overlays",
        lambda width: overlays_figure(found),
        "Images with their maps, true outlines and predicted outlines.",
        f"Best, median and worst images by the Dice of {NAMES[found.results[0].method.name]}. Blue: true outline;"
        " orange: predicted. Maps are brightest where their network looks, each scaled to its own range.",
    )
    return pages.render(
        "report/segmentation.html.j2",
        ("report/report.css",),
        name=name,
        lead=lead(scores),
        methods=[(NAMES[n], m) for n, m in scores["methods"].items()],
        gains=[(NAMES[n.partition(" - ")[2]], g) for n, g in scores["dice_differences"].items()],
        first=NAMES[found.results[0].method.name],
        pictures=[dice, overlays],
        scores=scores,
    )


def lead(scores: dict[str, Any]) -> str:
    """Return what came of the comparison in two sentences."""
    scored, chosen = scores["scored_on"], scores["thresholds_from"]
    first, *others = scores["methods"].items()
    best = max(others, key=lambda item: float(item[1]["dice"]["mean"]))
    return (
        f"Over {scored['num_images']:,} images of {scored['images']}, {NAMES[first[0]]} reaches a mean Dice of"
        f" {first[1]['dice']['mean']:.3f}; of the others {NAMES[best[0]]} is best, {best[1]['dice']['mean']:.3f}."
        f" Thresholds were chosen on {chosen['num_images']:,} images of {chosen['images']}, which are not scored."
    )


def dice_figure(found: Segmented, width: float = figures.WIDE) -> Figure:
    """Dice of every image (N dots), mean and interval, a row per method."""
    count = len(found.results)
    figure, axes = theme.new_figure(width, 0.9 + 0.42 * count)
    for place, result in enumerate(found.results):
        values, name = result.overlap.dice, result.method.name
        shift = keyed.generator(0, "segmentation dots").uniform(-0.24, 0.24, len(values))
        colour = theme.REST if name in SIMPLE else theme.ACCENT
        size = float(np.clip(3000 / len(values), 3, 22))
        axes.scatter(values, place + shift, s=size, color=colour, alpha=0.35, linewidths=0, rasterized=True)
        dice = found.scores["methods"][name]["dice"]
        axes.plot(dice["ci95"], (place, place), color=theme.INK, linewidth=2.2)
        axes.plot((dice["mean"],) * 2, (place - 0.3, place + 0.3), color=theme.INK, linewidth=1.6)
    axes.set_yticks(range(count), [NAMES[r.method.name] for r in found.results])
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Dice")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    return figure


def picked(dice: np.ndarray) -> list[tuple[str, int]]:
    """Return ("best" | "median" | "worst", place) of two images each by (N,) scores, fewer of few; no image twice."""
    order = np.argsort(-dice, kind="stable").tolist()
    middle = max(0, len(order) // 2 - 1)
    wanted = [("best", order[:2]), ("worst", order[:-3:-1][::-1]), ("median", order[middle : middle + 2])]
    seen: set[int] = set()
    kept: dict[str, list[int]] = {}
    for name, places in wanted:
        kept[name] = [p for p in places if p not in seen]
        seen.update(places)
    return [(name, place) for name in ("best", "median", "worst") for place in kept[name]]


def overlays_figure(found: Segmented) -> Figure:
    """Best, median and worst images in rows: image, truth, and what the learnt methods make of it."""
    rows = picked(found.results[0].overlap.dice)
    learnt = [result for result in found.results if result.method.name not in SIMPLE]
    columns: list[tuple[str, _Cell]] = [("image", _plain(found)), ("truth", _true(found))]
    for result in learnt:
        name = NAMES[result.method.name].replace(" on ", "\non ")
        if not result.method.name.startswith("unet"):
            columns.append((f"{name}\nmap", _heat(found, result)))
        columns.append((name, _outlines(found, result)))
    figure = Figure(figsize=(_CELL * len(columns), _CELL * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, (kind, place) in enumerate(rows):
        for j, (title, draw) in enumerate(columns):
            draw(grid[i, j], place)
            theme.quiet(grid[i, j])
            if i == 0:
                grid[i, j].set_title(title, loc="center", fontsize=8.5)
        grid[i, 0].set_ylabel(kind)
    return figure


def _picture(found: Segmented, place: int) -> Image.Image:
    reader, row = found.held_out.reader, int(found.held_out.rows[place])
    return as_picture(image_view(reader.image(row), found.config))


def _plain(found: Segmented) -> _Cell:
    return lambda axes, place: show(axes, _picture(found, place))


def _true(found: Segmented) -> _Cell:
    def draw(axes: Axes, place: int) -> None:
        show(axes, _picture(found, place))
        _outline(axes, found.held_out.masks[place], TRUE)

    return draw


def _heat(found: Segmented, result: Result) -> _Cell:
    def draw(axes: Axes, place: int) -> None:
        picture = _picture(found, place)
        heat = overlay(picture, result.maps(np.array([place]))[0].numpy())
        show(axes, heat.resize(picture.size) if picture.width > heat.width else heat)

    return draw


def _outlines(found: Segmented, result: Result) -> _Cell:
    def draw(axes: Axes, place: int) -> None:
        show(axes, _picture(found, place))
        _outline(axes, found.held_out.masks[place], TRUE, width=0.8)
        places = np.array([place])
        inside = found.held_out.inside(result.maps(places).numpy(), places)[0]
        _outline(axes, inside >= result.threshold, PREDICTED)
        axes.set_xlabel(f"{result.overlap.dice[place]:.2f}", fontsize=8, labelpad=2)

    return draw


def _outline(axes: Axes, mask: np.ndarray, colour: str, width: float = 1.3) -> None:
    """Draw the border of an (S, S) mask, also where it runs along the edge of the image."""
    side = len(mask)
    padded = np.pad(mask, 1).astype(float)
    centres = (np.arange(side + 2) - 0.5) / side
    if mask.any():
        axes.contour(centres, centres, padded, levels=[0.5], colors=[colour], linewidths=width)
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
