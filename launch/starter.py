"""`subspace init`: from a look at somebody's images to a configuration to begin with, each choice with its reason.

The choices are those of the recipes in configs/ that train from random weights; they are a start, not a search.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml

from data_shards.errors import UserError, printable
from data_shards.files import write_text
from data_shards.sources import read_source
from data_shards.survey import Survey, survey
from launch.config import checked
from launch.yaml_file import parse

SIZES_PX = (28, 32, 64, 96, 128)
LARGE_PX = 256  # from here on images are stored at 256 and seen at 224
ELONGATED, IMBALANCED = 1.5, 5.0
FEW_IMAGES = 5000
DRAWS: tuple[dict[str, str], ...] = ({}, {"validation": "0.2", "test": "0.2"}, {"validation": "0.3", "test": "0.2"})


@dataclass(frozen=True)
class Choice:
    """One line of the configuration: its section ("" for none), key, value, and why."""

    section: str
    key: str
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Start:
    """What `init` gives: findings and choices in words, the configuration, the command that makes the shards."""

    findings: tuple[str, ...]
    choices: tuple[Choice, ...]
    shards_command: str


def init(path: Path, out: Path) -> Start:
    """Look at images, write a commented configuration to `out`, return what was found and chosen.

    Raises:
        UserError: no images, too few of them, or `out` exists already.
    """
    if out.exists():
        raise UserError(f"{out} exists already; choose another place with -o, or remove it first")
    start = decide(survey(path), path)
    text = configuration(start)
    checked(parse(text, str(out)), str(out))
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return start


def decide(found: Survey, path: Path) -> Start:
    """Return what to begin with; raises UserError when there is too little to learn from."""
    draw, counts = _split(found)
    name = re.sub(r"[^\w.+=-]+", "-", path.resolve().stem if path.is_file() else path.resolve().name).strip("-.")[:60]
    name = name if re.match(r"\w", name, re.ASCII) and name.isascii() else "images"
    size_px, stored_px = _sizes(found)
    fit: Literal["pad", "crop"] = "pad" if found.elongation > ELONGATED else "crop"
    options = {**found.options, **draw}
    words = ["subspace", "shards", "build", found.source, f"shards/{name}", "--size", str(stored_px)]
    words += ["--fit", fit] if fit != "crop" else []
    command = shlex.join([*words, *(f"{key}={value}" for key, value in options.items())])
    choices = (
        Choice("", "name", name),
        *_data(found, name, size_px, stored_px, fit),
        *_network(found, size_px),
        *_training(found, counts["train"]),
        *_scores(found),
    )
    return Start(_findings(found, counts), choices, command)


def _split(found: Survey) -> tuple[dict[str, str], Mapping[str, Mapping[str, int]]]:
    """Return the fractions to draw for validation and test, the defaults if they do, and the numbers per class then."""
    if len(found.listing.classes) < 2:
        raise UserError(f"all images are of one class, {found.listing.classes[0]}: there is nothing to tell apart")
    for draw in DRAWS:
        try:
            listing = read_source(found.source, {**found.options, **draw})
        except UserError:  # the source has splits of its own
            continue
        owners: dict[str, set[str]] = defaultdict(set)
        for record in listing.records:
            if record.split == "validation":
                owners[record.label].add(record.group or f"of {record.path}")
        if len(owners) > 1 and max(map(len, owners.values())) > 1:
            return draw, listing.counts()
    raise UserError(
        f"{len(found.listing.records)} images in {len(found.listing.classes)} classes are too few: no split leaves"
        " validation images of two classes, and two of one that are not of one group"
    )


def _sizes(found: Survey) -> tuple[int, int]:
    """Return the side that the network sees and the side that is stored."""
    if found.shorter_px >= LARGE_PX:
        return 224, 256
    fitting = [size for size in SIZES_PX if size <= found.shorter_px]
    size = max(fitting) if fitting else max(8, found.shorter_px)
    return size, size


def _findings(found: Survey, counts: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    classes = found.class_counts
    most, least = next(iter(classes)), list(classes)[-1]
    lines = [
        f"{len(found.listing.records)} images in {len(classes)} classes; most of {most} ({classes[most]}), fewest of"
        f" {least} ({classes[least]})",
        ", ".join(f"{sum(numbers.values())} {split}" for split, numbers in counts.items()) + " images",
        f"of {found.looked_at} images looked at, half have a shorter side of {found.shorter_px} pixels or less; the"
        f" longest side is {found.largest_px}; {'colour' if found.channels == 3 else 'gray'}",
        f"groups: {found.why_group}",
        *found.listing.warnings,
    ]
    absent = [name for name, number in counts.get("validation", {}).items() if not number]
    if absent:
        lines.append(f"{len(absent)} classes have no validation image: {', '.join(absent[:5])}")
    if found.unreadable:
        lines.append(f"{len(found.unreadable)} of them cannot be read, as {found.unreadable[0]}")
    return tuple(printable(line) for line in lines)


def _data(found: Survey, name: str, size_px: int, stored_px: int, fit: str) -> list[Choice]:
    seen = "half of the images are at least that large" if found.shorter_px >= size_px else "the images are no larger"
    stored = f"; stored at {stored_px}" if stored_px != size_px else ""
    whole = "; padded, since a square crop would lose a third of half of the images" if fit == "pad" else ""
    flips = found.channels == 3
    augment = {"crop_scale": [0.5, 1.0], "hflip": flips}
    return [
        Choice("data", "shards", f"shards/{name}"),
        Choice("data", "image_size", size_px, f"{seen}{stored}{whole}"),
        Choice("data", "channels", found.channels, "all are gray" if found.channels == 1 else "some have colour"),
        Choice("data", "mean", list(found.mean), f"of {found.looked_at} images"),
        Choice("data", "std", list(found.std)),
        Choice("data", "augment", augment, "hflip: true only if left and right mean nothing in your images"),
    ]


def _network(found: Survey, size_px: int) -> list[Choice]:
    num_images = len(found.listing.records)
    if size_px <= 32:
        backbone: dict[str, Any] = {"name": "small_resnet", "widths": [16, 32, 64], "norm": "group"}
        why, hidden, dims = "images are small", [16, 8], 64
    elif num_images < FEW_IMAGES or size_px < 224:
        backbone = {"name": "resnet18", "stages": 3, "norm": "group"}
        why, hidden, dims = f"enough for {num_images} images of {size_px} pixels", [128, 32], 128
    else:
        backbone = {"name": "resnet50", "stages": 3, "norm": "group"}
        why, hidden, dims = f"there are {num_images} images", [128, 32], 128
    return [
        Choice("model", "backbone", backbone, f"{why}; norm group, since it starts from random weights"),
        Choice("model", "gate", {"name": "convolutions", "hidden": hidden}),
        Choice("model", "num_dims", dims),
        Choice(
            "model", "weights", "random", "a .pth or .safetensors file of that backbone is better; norm frozen then"
        ),
    ]


def _training(found: Survey, train: Mapping[str, int]) -> list[Choice]:
    typical, total = median(train.values()), sum(train.values())
    per_class = next((number for number in (8, 4) if number <= typical), 2)
    batch_size = 64 if total >= 1000 else 32
    return [
        Choice("objective", "miner", {"name": "distance_weighted"}),
        Choice("train", "epochs", 40 if total >= 1000 else 60),
        Choice("train", "batch_size", batch_size),
        Choice(
            "train", "samples_per_class", per_class, f"half of the classes have {typical:.0f} training images or less"
        ),
        Choice("optim", "lr", 1e-3, "for random weights; a tenth of it for trained ones"),
        Choice("optim", "schedule", "cosine"),
        Choice("optim", "warmup_epochs", 2.0),
    ]


def _scores(found: Survey) -> list[Choice]:
    numbers = list(found.class_counts.values())
    uneven = numbers[0] / numbers[-1]
    monitor, why = ("macro_recall_at_1", f"the largest class has {uneven:.0f} times the images of the smallest")
    if uneven <= IMBALANCED:
        monitor, why = "recall_at_1", "classes are of like size"
    grouped = any(record.group for record in found.listing.records)
    exclude = "group" if grouped else "none"
    because = "neighbours of the same group are left out" if grouped else "no groups are known"
    return [
        Choice("cluster", "backend", "local", "'ray' for several machines"),
        Choice("growth", "monitor", monitor, why),
        Choice("growth", "patience", 5, "epochs without a better score before a subspace is split"),
        Choice("growth", "max_subspaces", 4),
        Choice("evaluate", "exclude", exclude, because),
        Choice("launch", "nproc", 1, "one for each GPU"),
    ]


def configuration(start: Start) -> str:
    """Return the YAML text with its reasons as comments."""
    lines = ["# Written by `subspace init`; change what you know better.", "#"]
    lines += [f"# {finding}" for finding in start.findings]
    lines += ["#", f"#   {start.shards_command}"]
    section = ""
    for choice in start.choices:
        if choice.section != section:
            section = choice.section
            lines.append(f"{section}:")
        value = yaml.safe_dump(choice.value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        comment = f"  # {printable(choice.why)}" if choice.why else ""
        lines.append(f"{'  ' if section else ''}{choice.key}: {value}{comment}")
    return "\n".join(lines) + "\n"
