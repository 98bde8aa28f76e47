"""`subspace segment`: what a run's attention, or its first cluster, is worth as a segmentation, beside what it has to
beat.

Legend: N images, C classes, D embedding width, S x S pixels of the evaluation image.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.augment import AugmentConfig
from data_shards.errors import UserError, printable
from data_shards.evaluation import mask_views
from data_shards.files import write_text
from data_shards.manifest import Manifest
from data_shards.reader import SplitReader, open_shards
from launch import build
from launch.trained import Trained, alone, config_of, load
from trainer import distributed
from trainer.heads.dense import DenseEmbedding
from trainer.segmentation import pixels, sources
from trainer.segmentation.maps import Scale
from trainer.segmentation.protocol import Masked, Method, Result, Rows, judge, lit_views, splits
from trainer.segmentation.scores import summary
from trainer.segmentation.simple import simple_methods
from trainer.segmentation.unet import Labels, UNetOptions, probabilities, train_unet

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SegmentOptions:
    """What is compared with the attention, and how.

    `unet`, `unet_baseline`, `ceiling`: train a U-Net on the masks of the attention, of Grad-CAM, on the true ones.
    """

    baseline: Path | None = None
    unet: bool = False
    unet_baseline: bool = False
    ceiling: bool = False
    scale: Scale = "minmax"
    target: sources.Target = "predicted"
    unet_epochs: int = UNetOptions.epochs
    seed: int | None = None  # of the U-Nets and the bootstrap; the run's when not given
    size: int | None = None  # whole images, their shorter side at this many pixels; what evaluation sees when not given
    lit: bool = False  # nothing is predicted where the camera shows nothing


@dataclass(frozen=True)
class Segmented:
    """What came of a comparison: `scores` is scores.json, `results` are in the order they are shown."""

    scores: dict[str, Any]
    results: list[Result]
    held_out: Masked
    config: AugmentConfig


def segment(run: Path, options: SegmentOptions, out: Path | None = None, tell: Tell = lambda line: None) -> Segmented:
    """Score maps of a run as segmentations; write RUN/segmentation (or `out`), return what came of it.

    Raises:
        UserError: no run, no masks, no attention, or a baseline that cannot be compared.
    """
    from launch.report.segmentation import write_pictures

    if options.unet_baseline and options.baseline is None:
        raise UserError("--unet-baseline needs --baseline: a U-Net on the masks of which classification run?")
    if options.size is not None and not 16 <= options.size <= 4096:
        raise UserError(f"--size must be 16 to 4096 pixels, got {options.size}")
    if options.unet_epochs < 1:
        raise UserError(f"--unet-epochs must be 1 or more, got {options.unet_epochs}")
    config = config_of(run)
    with alone(config):
        found = _compared(load(run, config), options, tell)
    target = out or run / "segmentation"
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_text(target / "scores.json", json.dumps(found.scores, indent=1) + "\n")
        write_text(target / "per_image.csv", per_image(found))
        write_pictures(found, target, run.resolve().name)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    return found


def _compared(own: Trained, options: SegmentOptions, tell: Tell) -> Segmented:
    config = build.transform(own.config)
    if options.size is not None:
        config = replace(config, size=options.size, resize=options.size)
    folder, train, validation, test = build.open_splits(own.config)
    tuning, held_out, without = splits(validation, test, config, options.lit)
    seed = own.config.seed if options.seed is None else options.seed
    results: list[Result] = []
    for method in list(_map_methods(own, options, config, folder.manifest)):  # refused before anything is scored
        results.append(judge(method, tuning, held_out))
    unet_options = UNetOptions(epochs=options.unet_epochs, seed=seed)
    num_trained = {}
    for name, rows, labels, sure in list(_trainings(own, results, options, train, config)):
        tell(f"training {name}: {len(rows)} images, {unet_options.epochs} epochs")
        network = train_unet(train, rows, labels, config, unet_options, distributed.device(), sure)
        method = Method(name, {"only": probabilities(network, config, distributed.device())}, threshold=0.5)
        results.append(judge(method, tuning, held_out))
        num_trained[name] = len(rows)
    results += [judge(method, tuning, held_out) for method in simple_methods(config)]
    scores = {
        "run": str(own.run),
        "baseline": None if options.baseline is None else str(options.baseline),
        "epoch": own.epoch,
        "seed": seed,
        "image_size": config.size,
        "only_lit": options.lit,
        "map_scale": options.scale,
        "grad_cam_class": options.target,
        "thresholds_from": {"images": tuning.name, "num_images": len(tuning.rows)},
        "scored_on": {"images": held_out.name, "num_images": len(held_out.rows)},
        "without_mask": without,
        "unet": {**asdict(unet_options), "num_images": num_trained} if num_trained else None,
        **figures(results, seed),
    }
    return Segmented(scores, results, held_out, config)


def _map_methods(own: Trained, options: SegmentOptions, config: AugmentConfig, manifest: Manifest) -> Iterator[Method]:
    """Yield the attention of the run, or the first cluster of its pixels in two readings; and, when asked for, Grad-CAM
    of the baseline."""
    if isinstance(own.network.head, DenseEmbedding):
        yield Method("cluster", {"only": pixels.maker(own.network, config, pixels.cluster)}, threshold=0.5)
        yield Method("cluster_cut", {"only": pixels.maker(own.network, config, pixels.cluster)})
        yield Method("region", {"only": pixels.maker(own.network, config, pixels.nearest_region)}, threshold=0.5)
    else:
        coarse = sources.attention(own.network, config)
        yield Method("attention", {"only": sources.at_full_size(coarse, config.size, options.scale)})
    if options.baseline is not None:
        other = load(options.baseline, config_of(options.baseline))
        check_comparable(own, other, manifest)
        weight, bias = classifier(other, len(manifest.classes))
        coarse = sources.classification(other.network, weight, bias, build.transform(other.config), options.target)
        yield Method("grad_cam", {"only": sources.at_full_size(coarse, config.size, options.scale)})


def classifier(found: Trained, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,) of a classification run's loss.

    Raises:
        UserError: the run is of another kind.
    """
    weight, bias = (found.tensors.get(f"loss/0/{name}") for name in ("weight", "bias"))
    device, data = next(found.network.parameters()).device, found.config.data
    with torch.no_grad():
        blank = torch.zeros(1, data.channels, data.image_size, data.image_size, device=device)
        shape = (num_classes, found.network(blank).vectors.shape[1])
    if weight is None or bias is None or weight.shape != shape or bias.shape != shape[:1]:
        raise UserError(
            f"{found.run} is not a classification run: its best checkpoint holds no linear classifier of"
            f" {num_classes} classes (loss/0/weight, loss/0/bias)."
        )
    return weight.float().to(device), bias.float().to(device)


def check_comparable(own: Trained, other: Trained, manifest: Manifest) -> None:
    """Raise UserError unless both runs saw the same images, split and cut alike."""
    shards = open_shards(Path(other.config.data.shards), verify=False).manifest.shards
    if shards != manifest.shards:
        raise UserError(f"{other.run} was trained on other shards than {own.run}: their scores cannot be compared.")
    for name in ("image_size", "resize"):
        here, there = (getattr(found.config.data, name) for found in (own, other))
        if here != there:
            raise UserError(f"data.{name} is {there} in {other.run} and {here} in {own.run}: masks would differ.")


def _trainings(
    own: Trained, results: list[Result], options: SegmentOptions, train: SplitReader, config: AugmentConfig
) -> Iterator[tuple[str, Rows, Labels, Labels | None]]:
    """Yield (name, rows, labels, certainty or None) of every U-Net; only the ceiling's labels are true masks of the
    training split."""
    wanted = {results[0].method.name: options.unet, "grad_cam": options.unet_baseline}
    rows = np.arange(len(train))
    for result in [r for r in results if wanted.get(r.method.name)]:
        sure = None
        if result.method.name == "cluster":
            sure = pixels.maker(own.network, config, pixels.certainty)(train, rows)
        labels = pseudo_masks(result, train, rows)
        yield (
            f"unet_{result.method.name}",
            rows,
            _where_lit(labels, train, rows, config) if options.lit else labels,
            sure,
        )
    if options.ceiling:
        rows = train.masked_rows()
        if not len(rows):
            raise UserError("--ceiling needs masks in the training split, and there are none.")
        yield "unet_supervised", rows, lambda places: torch.from_numpy(mask_views(train, rows[places], config)), None


def pseudo_masks(result: Result, reader: SplitReader, rows: Rows) -> Labels:
    """Return the labels that a method's maps give some rows, at the threshold that validation chose."""
    maps = result.method.variants[result.variant](reader, rows)
    return lambda places: maps(places) >= result.threshold


def _where_lit(labels: Labels, reader: SplitReader, rows: Rows, config: AugmentConfig) -> Labels:
    field = torch.from_numpy(lit_views(reader, rows, config))
    return lambda places: labels(places) & field[places]


def figures(results: list[Result], seed: int) -> dict[str, Any]:
    """Return the scores of every method, and image by image what the first one has over the others."""
    methods, dice = {}, {r.method.name: r.overlap.dice for r in results}
    for result in results:
        methods[result.method.name] = {
            "threshold": result.threshold,
            "threshold_chosen": result.method.threshold is None,
            "variant": result.variant,
            "tuning_dice": result.tuning_dice,
            "dice": summary(result.overlap.dice, seed, "segmentation"),
            "iou": summary(result.overlap.iou, seed, "segmentation"),
        }
    first, *others = dice
    gains = {f"{first} - {name}": summary(dice[first] - dice[name], seed, "segmentation") for name in others}
    return {"methods": methods, "dice_differences": gains}


def per_image(found: Segmented) -> str:
    """Return the CSV text: a line per method and image."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(("method", "sample_id", "path", "class", "dice", "iou", "predicted_px", "true_px"))
    reader = found.held_out.reader
    for result in found.results:
        counts = result.overlap
        columns = zip(counts.dice, counts.iou, counts.predicted.tolist(), counts.true.tolist(), strict=True)
        for row, (dice, iou, predicted, true) in zip(found.held_out.rows.tolist(), columns, strict=True):
            name, place = printable(reader.classes[reader.labels[row]]), printable(reader.path(row))
            about = (result.method.name, int(reader.sample_ids[row]), place, name)
            table.writerow((*about, f"{dice:.6f}", f"{iou:.6f}", predicted, true))
    return stream.getvalue()
