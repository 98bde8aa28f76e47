"""Vessels of DRIVE by shape alone, over seeds: runs of configs/local/drive_shapes_cpu.yaml through `subspace segment`.

    python benchmarks/shapes.py runs/drive-shapes-0 runs/drive-shapes-1 [docs/results/shapes/drive.json] [PICTURE.png]

Whole images of 256 pixels inside of the field of view: the first cluster as it is and cut by validation, a U-Net
trained on it, simple methods, and one that `subspace segment` has not: how much darker green is than around, in one of
five neighbourhoods and from one level on, both chosen by validation. The picture shows every test image by the first
run. Scores that are there are not made again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from segmentation import over_seeds, scored
from torch import Tensor

from data_shards.augment import AugmentConfig
from data_shards.evaluation import image_view
from data_shards.field_of_view import lit
from data_shards.reader import SplitReader
from launch import build
from launch.trained import alone, config_of, load
from trainer.segmentation import pixels
from trainer.segmentation.protocol import MapMaker, Maps, Masked, Method, Places, Rows, judge, splits

OPTIONS = ("--size", "256", "--lit", "--unet")
CONFIG = AugmentConfig(size=256, resize=256)
NEIGHBOURHOODS = (3, 4, 5, 6, 8)  # sigma of a Gaussian, in pixels


def darker_than_around(sigma: float) -> MapMaker:
    """Return the maker of maps: the mean green around a pixel, of what is lit, less its own."""

    def of(image: np.ndarray) -> np.ndarray:
        inside, green = ndimage.binary_erosion(lit(image), iterations=4).astype(float), image[..., 1].astype(float)
        around = ndimage.gaussian_filter(green * inside, sigma) / (ndimage.gaussian_filter(inside, sigma) + 1e-6)
        return np.where(inside > 0, around - green, -255.0)

    def make(reader: SplitReader, rows: Rows) -> Maps:
        def maps(places: Places) -> Tensor:
            return torch.from_numpy(
                np.stack([of(image_view(reader.image(int(r)), CONFIG)) for r in rows[places]])
            ).float()

        return maps

    return make


def contrast(tuning: Masked, held_out: Masked) -> dict[str, Any]:
    """Return what local contrast reaches."""
    makers = {str(sigma): darker_than_around(sigma) for sigma in NEIGHBOURHOODS}
    found = judge(Method("local_contrast", makers), tuning, held_out)
    return {"sigma": float(found.variant), "tuning_dice": found.tuning_dice, "dice": float(found.overlap.dice.mean())}


def picture(run: Path, held_out: Masked, path: Path) -> None:
    """Draw the test images, their true vessels, and the first cluster of the run."""
    config = config_of(run)
    with alone(config):
        network = load(run, config).network
        seen = AugmentConfig(256, resize=256, mean=config.data.mean, std=config.data.std)
        maps = held_out.inside(
            pixels.maker(network, seen, pixels.cluster)(held_out.reader, held_out.rows)(slice(None)).numpy(),
            slice(None),
        )
    figure = Figure(figsize=(3 * len(held_out.rows), 9), layout="constrained")
    axes = figure.subplots(3, len(held_out.rows))
    for column, row in enumerate(held_out.rows.tolist()):
        shown = (image_view(held_out.reader.image(row), CONFIG), held_out.masks[column], maps[column].clip(0, 1))
        for place, what in enumerate(shown):
            axes[place, column].imshow(what, cmap="gray", vmin=0, vmax=None if place == 0 else 1)
            axes[place, column].set_axis_off()
    for place, name in enumerate(("image", "true vessels", "first cluster")):
        axes[place, 0].set_title(name, loc="left")
    figure.savefig(path, dpi=72)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def main() -> None:
    runs = [Path(word) for word in sys.argv[1:] if Path(word).is_dir()]
    targets = [Path(word) for word in sys.argv[1:] if not Path(word).is_dir()]
    found = [scored(run, *OPTIONS) for run in runs]
    methods = over_seeds(found)
    for name, row in methods.items():
        row["threshold"] = [scores["methods"][name]["threshold"] for scores in found]
    _, _, validation, test = build.open_splits(config_of(runs[0]))
    tuning, held_out, _ = splits(validation, test, CONFIG, only_lit=True)
    table = {"images": found[0]["scored_on"], "methods": methods, "local_contrast": contrast(tuning, held_out)}
    for name, row in methods.items():
        print(
            f"| {name} | " + " | ".join(f"{row[m]['mean']:.3f} ± {row[m]['std']:.3f}" for m in ("dice", "iou")) + " |"
        )
    print(f"| local contrast | {table['local_contrast']['dice']:.3f} | |")
    for target in targets:
        if target.suffix == ".json":
            target.write_text(json.dumps(table, indent=1) + "\n")
        else:
            picture(runs[0], held_out, target)


if __name__ == "__main__":
    main()
