"""`subspace segment` and `subspace explain`: what the maps of a network are worth, and why two images are alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg


def segment(
    run: Positional[Path],
    /,
    *,
    baseline: Path | None = None,
    unet: bool = False,
    unet_baseline: bool = False,
    ceiling: bool = False,
    map_scale: Literal["minmax", "none"] = "minmax",
    grad_cam_class: Literal["predicted", "label"] = "predicted",
    unet_epochs: int = 30,
    seed: int | None = None,
    size: int | None = None,
    lit: bool = False,
    out: Path | None = None,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Score the attention maps of a run, or the first cluster of its pixels, as segmentations, against masks unseen.

    Args:
        run: the run folder.
        baseline: a classification run on the same shards; its Grad-CAM is scored alike.
        unet: train a U-Net on these maps at their threshold; on a cluster weighted by how sure it is.
        unet_baseline: train a U-Net on the Grad-CAM maps at theirs.
        ceiling: train a U-Net on the true masks of the training split.
        map_scale: stretch every map over [0, 1] before the threshold, or leave it.
        grad_cam_class: whose Grad-CAM: the class that the network predicts, or the labelled one.
        unet_epochs: passes over the training split.
        seed: of the U-Nets and of the intervals; the run's when not given.
        size: look at whole images, their shorter side at this many pixels, instead of at what evaluation sees; for
            networks that take images of any size.
        lit: predict nothing where no channel is above 20 of 255, as behind the round border of a fundus photograph.
        out: folder of the results; RUN/segmentation when not given.
        as_json: print the scores as JSON.
    """
    from launch.trained import config_of

    config_of(run)  # pins what torch reads when it is imported
    from launch.segment import SegmentOptions
    from launch.segment import segment as run_segment

    options = SegmentOptions(
        baseline, unet, unet_baseline, ceiling, map_scale, grad_cam_class, unet_epochs, seed, size, lit
    )
    found = run_segment(run, options, out, tell=lambda line: print(line, file=sys.stderr))
    if as_json:
        print(json.dumps(found.scores))
    else:
        _print_table(found.scores)
        print(f"pictures: {(out or run / 'segmentation') / 'index.html'}")
    return 0


def _print_table(scores: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    scored, chosen = scores["scored_on"], scores["thresholds_from"]
    table = Table(
        caption=f"{scored['num_images']} images of {scored['images']}; thresholds from {chosen['num_images']} images of"
        f" {chosen['images']}"
    )
    for name in ("method", "Dice", "95 %", "median", "IoU", "threshold"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, found in scores["methods"].items():
        dice = found["dice"]
        interval = "{:.3f} to {:.3f}".format(*dice["ci95"])
        spread = f"{dice['mean']:.3f}±{dice['std']:.3f}"
        numbers = (
            spread,
            interval,
            f"{dice['median']:.3f}",
            f"{found['iou']['mean']:.3f}",
            f"{found['threshold']:.2f}",
        )
        table.add_row(name, *numbers)
    Console(width=120).print(table)


def explain(
    run: Positional[Path],
    /,
    *,
    query: str,
    match: str,
    out: Path,
    split: Literal["train", "validation", "test"] = "validation",
    hold_norms: bool = False,
) -> int:
    """Draw why two images are alike: where each raises their cosine, in the whole embedding and in each subspace.

    Args:
        run: the run folder.
        query: an image file, or the sample id of an image of the split.
        match: the other one.
        out: the picture, a PNG.
        split: which split sample ids are of.
        hold_norms: show what the cosine is made of, instead of what would raise it; for images that are nearly equal.
    """
    from launch.trained import config_of

    config_of(run)  # pins what torch reads when it is imported
    from launch.explain import explain as run_explain

    for name, cosine in run_explain(run, query, match, out, split, hold_norms).items():
        print(f"{name}: {cosine:.3f}")
    return 0
