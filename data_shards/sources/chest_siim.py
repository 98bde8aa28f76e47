"""SIIM-ACR pneumothorax (Kaggle challenge 2019, https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation).

A table train-rle.csv (or stage_2_train.csv) with ImageId and EncodedPixels, and the images anywhere below, called
ImageId.dcm or ImageId.png. Only images with a pneumothorax are listed (EncodedPixels is not -1); an image has a row for
every part of its mask. The first half by name is training, the rest test; patients are not known.

EncodedPixels are pairs of numbers: pixels to skip from the end of the run before, and the length of the run, column by
column from the top left.

Legend: H, W height and width of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data_shards.decode import Header, UInt8Array, Unreadable, image_header
from data_shards.sources.dicom import single_frame
from data_shards.sources.folder import walk_files
from data_shards.sources.listing import Record
from data_shards.sources.published import left_out
from data_shards.sources.table import read_rows

COUNTS = {"pneumothorax": (1334, 1335)}
_TABLES = ("train-rle.csv", "stage_2_train.csv")


def is_at(path: Path) -> bool:
    """Return whether a folder holds the table of masks."""
    return any((path / name).is_file() for name in _TABLES)


def records(path: Path, target: str) -> tuple[list[Record], list[str]]:
    """Return the records of the images with a pneumothorax, and notes."""
    table = next(path / name for name in _TABLES if (path / name).is_file())
    runs: dict[str, list[str]] = {}
    for row in read_rows(table, required=("ImageId", "EncodedPixels")):
        if row["EncodedPixels"] not in ("-1", ""):
            runs.setdefault(row["ImageId"], []).append(row["EncodedPixels"])
    images = {file.stem: file for suffix in (".dcm", ".png") for file in walk_files(path, {suffix})}
    names = sorted(name for name in runs if name in images)
    found = [
        _record(images[name], path, "train" if number < len(names) // 2 else "test", tuple(runs[name]))
        for number, name in enumerate(names)
    ]
    return found, left_out("image", sorted(runs.keys() - images.keys()), "which the table has and no file")


def decoded(texts: tuple[str, ...], height: int, width: int) -> UInt8Array:
    """Return (H, W) uint8, 255 in any of the run-length encoded masks; raises Unreadable for runs that leave it."""
    flat = np.zeros(width * height, dtype=np.uint8)
    for text in texts:
        try:
            numbers = np.array([int(word) for word in text.split()], dtype=np.int64)
        except (ValueError, OverflowError):
            raise Unreadable("the encoded mask holds something else than numbers") from None
        if len(numbers) % 2 or (numbers < 0).any() or (numbers > flat.size).any() or numbers.sum() > flat.size:
            raise Unreadable(f"the encoded mask does not fit {width} x {height} pixels")
        ends = np.cumsum(numbers)[1::2]
        for end, length in zip(ends.tolist(), numbers[1::2].tolist(), strict=True):
            flat[end - length : end] = 255
    return flat.reshape(width, height).T.copy()


def _record(file: Path, root: Path, split: str, runs: tuple[str, ...]) -> Record:
    record = Record(file.relative_to(root).as_posix(), "", split, file=file, mask_above=0.3)
    if file.suffix.lower() == ".dcm":
        record = single_frame(record)
    header = record.header or partial(image_header, file)
    return replace(record, mask=partial(_mask, header, runs))


def _mask(header: Callable[[], Header], runs: tuple[str, ...]) -> UInt8Array:
    known = header()
    return decoded(runs, known.height, known.width)
