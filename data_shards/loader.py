"""Rows of a split -> batches of tensors: reading, cropping, augmentation and normalisation, inline or in workers.

The order of rows comes from `order`, the draws from `augment`, so this module owns no randomness: zero or many workers,
any slice of a batch and any starting step give the same tensors. Workers hand user errors back as values, because a
DataLoader would wrap them in a traceback, and bad images that they replaced; workers that die or hang are one sentence.

Two speeds. Images of one size that is (nearly) the final one are gathered as one uint8 array and processed as a batch,
a random crop becoming part of the warp; all others are decoded and cropped one by one with Pillow's antialiased filter.
A reading thread beside the training loop is left out on purpose: the first kind took 1 % of a step of the small network
on one core (64 px RGB, 28 px gray), and the second belongs into workers.

Legend: B rows of this rank, V views, C channels, S x S pixels.
"""

from __future__ import annotations

import multiprocessing.queues
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_shards.augment import (
    AugmentConfig,
    Floats,
    Parameters,
    Pixels,
    box_matrix,
    centre_box,
    crop_box,
    crop_boxes,
    draw_views,
    resized,
    smallest_decode,
)
from data_shards.augment_batch import apply, normalise, warp_masks
from data_shards.errors import LoaderError, UserError
from data_shards.evaluation import image_view, with_channels
from data_shards.order import GlobalBatch
from data_shards.samplers import parts

Rows = npt.NDArray[np.int64]
_rooms: list[npt.NDArray[np.float32]] = []  # memory of the latest batches
_MOST_ROOMS = 4
_FREE = 3  # references to a room that only `_rooms`, and who looks at it, hold
_WORKER_TIMEOUT_S = 600.0
_LOOK_EVERY_S = 5.0  # at whether workers live


class Reader(Protocol):
    """What is used of `reader.SplitReader`."""

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    sample_ids: npt.NDArray[np.int64]
    has_masks: bool
    bad: dict[int, str]

    def admit(self, found: Mapping[int, str]) -> None: ...

    def image(self, row: int, min_size: tuple[int, int] | None = None) -> Pixels: ...

    def images(self, rows: Rows) -> Pixels: ...

    def uniform_shape(self) -> tuple[int, int, int] | None: ...

    def mask(self, row: int) -> Pixels | None: ...


@dataclass
class Batch:
    """The rows of one rank of one global batch."""

    images: Tensor  # (B, V, C, S, S) float32, normalised
    labels: Tensor  # (B,) int64
    sample_ids: Tensor  # (B,) int64
    subspace: int | None  # None trains all subspaces
    geometry: Tensor  # (B, V, 3, 3) float32, output -> coordinates in the stored image
    masks: Tensor | None = None  # (B, V, S, S) uint8, seen through the same geometry


@dataclass
class _Raw:
    """A batch before the pixel work: what workers hand over when that is done on a GPU."""

    pixels: Tensor  # (B * V, C, S, S) uint8
    parameters: Parameters
    warps: bool
    batch: Batch  # images still empty


# what was made, or the error of the user; and the bad rows that the reader has replaced so far
_Item = tuple["_Raw | Batch | Tensor | UserError", dict[int, str]]


@dataclass
class _TrainItems(Dataset["_Item"]):
    """Item i = this rank's part of step start_step + i. A plain object, so that spawned workers can have it."""

    reader: Reader
    batches: Sequence[GlobalBatch]
    config: AugmentConfig
    seed: int
    epoch: int
    views: int
    slices: Sequence[tuple[int, int | None]]
    start_step: int
    with_masks: bool
    finish: bool  # do the pixel work, too

    def __post_init__(self) -> None:
        self.parts = parts(self.batches)

    def __len__(self) -> int:
        return max(0, len(self.parts) - self.start_step)

    def __getitem__(self, index: int) -> _Item:
        slices = [slice(start, stop) for start, stop in self.slices]
        subspace, rows, earlier = self.parts.part(self.start_step + index, slices)
        drawn = draw_views(self.config, self.seed, self.epoch, self.reader.sample_ids[rows], self.views, earlier)
        try:
            raw = _raw(self.reader, rows, drawn, self.config, self.views, subspace, self.with_masks)
            return (_finished(raw, self.config, self.views, "cpu") if self.finish else raw), dict(self.reader.bad)
        except UserError as error:
            return error, dict(self.reader.bad)


@dataclass
class _EvaluationItems(Dataset["_Item"]):
    """Item i = the (n, C, S, S) uint8 pixels of block i."""

    reader: Reader
    blocks: Sequence[Rows]
    config: AugmentConfig

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> _Item:
        try:
            pixels = _planar(_evaluation_pixels(self.reader, self.blocks[index], self.config))
            return pixels, dict(self.reader.bad)
        except UserError as error:
            return error, dict(self.reader.bad)


def train_loader(
    reader: Reader,
    batches: Sequence[GlobalBatch],
    config: AugmentConfig,
    seed: int,
    epoch: int,
    views: int = 1,
    position: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    num_workers: int = 0,
    start_step: int = 0,
    with_masks: bool = False,
    device: torch.device | str = "cpu",
    start_method: str = "fork",
) -> Iterator[Batch]:
    """Yield this rank's part of every global batch from `start_step` on.

    batches: the whole epoch, from `order.batches`. position: (start, stop) in the batch, or several of them in order;
    None = all. device: where the pixel work is done (in the workers for "cpu") and where `images` end up.
    Raises UserError for images that do not fit the configuration, DataIntegrityError for damaged ones.
    """
    finish = torch.device(device).type == "cpu"
    slices = _slices(position)
    items = _TrainItems(reader, batches, config, seed, epoch, views, slices, start_step, with_masks, finish)
    for item in _stream(items, num_workers, start_method):
        yield item if finish else _finished(item, config, views, device)


def embed_loader(
    reader: Reader,
    blocks: Sequence[Rows],
    config: AugmentConfig,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    start_method: str = "fork",
) -> Iterator[tuple[Rows, Tensor]]:
    """Yield (rows, (n, C, S, S) float32 images) of every block with evaluation transforms: resize, centre crop."""
    items = _EvaluationItems(reader, blocks, config)
    for rows, pixels in zip(blocks, _stream(items, num_workers, start_method), strict=True):
        yield rows, _normalised(pixels, config, device)


def eval_images(reader: Reader, rows: Rows, config: AugmentConfig) -> Tensor:
    """Return (n, C, S, S) float32 images of some rows with evaluation transforms."""
    return _normalised(_planar(_evaluation_pixels(reader, rows, config)), config, "cpu")


def class_counts(reader: Reader) -> dict[str, int]:
    """Return the number of images of every class, in class order."""
    counts = np.bincount(reader.labels, minlength=len(reader.classes))
    return {name: int(count) for name, count in zip(reader.classes, counts, strict=True)}


def _slices(position: tuple[int, int] | Sequence[tuple[int, int]] | None) -> Sequence[tuple[int, int | None]]:
    """Return the slices of a batch that belong to this rank."""
    if position is None:
        return [(0, None)]
    if isinstance(position[0], int):
        position = [(position[0], position[1])]  # type: ignore[list-item]
    return position  # type: ignore[return-value]


def _stream(items: _TrainItems | _EvaluationItems, num_workers: int, start_method: str) -> Iterator[Any]:
    """Yield the items in order, made here or by worker processes of one thread each."""
    if num_workers and len(items):
        source = _from_workers(items, num_workers, start_method)
    else:
        source = (items[i] for i in range(len(items)))
    for item, bad in source:
        items.reader.admit(bad)
        if isinstance(item, UserError):
            raise item
        yield item


def _from_workers(items: Dataset[_Item], num_workers: int, start_method: str) -> Iterator[_Item]:
    """Yield what workers make; raises LoaderError when they die (within a look) or are stuck (after the timeout)."""
    with tempfile.TemporaryDirectory(prefix="loader-", ignore_cleanup_errors=True) as folder:
        loader = DataLoader(
            items,
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=partial(_begin_worker, folder),
            multiprocessing_context=start_method,
            timeout=_LOOK_EVERY_S,
            generator=torch.Generator(),  # else every epoch would draw from the global generator
        )
        try:
            made = _without_handler(loader)
            try:
                yield from _patiently(made)
            finally:
                made._shutdown_workers()  # type: ignore[attr-defined]  # before their folder goes
        except (RuntimeError, OSError, EOFError) as error:
            text = " ".join(str(error).split())
            if text.startswith("Caught "):  # an error of ours, with the worker's traceback
                raise
            raise LoaderError(
                f"The processes that load batches failed ({text[:200] or type(error).__name__}); if nobody killed "
                "them, give them more memory, /dev/shm or open files, or lower data.num_workers."
            ) from error


def _patiently(made: Iterator[_Item]) -> Iterator[_Item]:
    """Yield from workers; a look that finds them alive and at work is no error until the timeout."""
    since = time.monotonic()
    while True:
        try:
            item = next(made)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out after" not in str(error) or time.monotonic() - since > _WORKER_TIMEOUT_S:
                raise
            continue
        yield item
        since = time.monotonic()


def _without_handler(loader: DataLoader[_Item]) -> Iterator[_Item]:
    """Start the workers, and take back torch's handler of SIGCHLD: it would raise in the middle of whatever runs."""
    before = signal.getsignal(signal.SIGCHLD)
    made = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return made


def _begin_worker(folder: str, worker: int) -> None:
    torch.set_num_threads(1)
    # Tensors are handed over by way of a socket in a temporary folder, which a killed worker leaves behind; the last
    # worker of a killed rank takes the folder with it.
    tempfile.tempdir = folder
    multiprocessing.util.Finalize(None, _remove_empty, args=(folder,), exitpriority=-200)
    # A batch that cannot be handed over (no descriptors, /dev/shm full) would be dropped with a traceback, and waited
    # for until the timeout; the end of a worker is noticed at once.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, item: os._exit(1)
    )


def _remove_empty(folder: str) -> None:
    with suppress(OSError):
        os.rmdir(folder)


def _fits(reader: Reader, config: AugmentConfig) -> bool:
    """Return whether all stored images have the final size already."""
    shape = reader.uniform_shape()
    return shape is not None and shape[:2] == (config.size, config.size) and config.resize in (None, config.size)


def _nearly_fits(reader: Reader, config: AugmentConfig) -> bool:
    """Return whether all stored images have one size, at most a quarter above the final one: no need to antialias."""
    shape = reader.uniform_shape()
    return shape is not None and max(shape[:2]) <= 1.25 * config.size


def _planar(pixels: Pixels) -> Tensor:
    """Return (n, C, S, S), the same memory, from (n, S, S, C)."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _viewed(reader: Reader, rows: Rows, views: int) -> Pixels:
    """Return (B * V, H, W, C) of images of one size, the views of an image next to each other."""
    pixels = reader.images(rows)
    return pixels if views == 1 else np.repeat(pixels, views, axis=0)


def _evaluation_pixels(reader: Reader, rows: Rows, config: AugmentConfig) -> Pixels:
    if _fits(reader, config):
        return reader.images(rows)
    out = np.empty((len(rows), config.size, config.size, config.channels), dtype=np.uint8)
    for i, row in enumerate(rows):
        out[i] = image_view(reader.image(int(row), smallest_decode(config, None)), config)
    return out


def _cropped_pixels(
    reader: Reader, rows: Rows, drawn: Parameters, config: AugmentConfig, views: int
) -> tuple[Pixels, Floats]:
    """Return (B * V, S, S, C) pixels after cropping, and (B * V, 3, 3) from crop to image coordinates."""
    out = np.empty((len(rows) * views, config.size, config.size, config.channels), dtype=np.uint8)
    geometry = np.empty((len(rows) * views, 3, 3))
    for i, row in enumerate(rows):
        crops = drawn.crop[i * views : (i + 1) * views] if config.crops else [None]
        needed = max(smallest_decode(config, crop) for crop in crops)
        image = with_channels(reader.image(int(row), needed), config)
        height, width = image.shape[:2]
        for j in range(i * views, (i + 1) * views):
            box = crop_box(drawn.crop[j], height, width) if config.crops else centre_box(config, height, width)
            out[j], geometry[j] = resized(image, box, config.size), box_matrix(box, height, width)
    return out, geometry


def _raw(
    reader: Reader,
    rows: Rows,
    drawn: Parameters,
    config: AugmentConfig,
    views: int,
    subspace: int | None,
    with_masks: bool,
) -> _Raw:
    warps, masks = config.warps, None
    if _fits(reader, config) and not config.crops:
        pixels, geometry = _viewed(reader, rows, views), drawn.warp
    elif config.crops and _nearly_fits(reader, config):
        pixels, warps = _viewed(reader, rows, views), True
        height, width = pixels.shape[1:3]
        geometry = box_matrix(crop_boxes(drawn.crop, height, width), height, width) @ drawn.warp
        drawn = replace(drawn, warp=geometry)
    else:
        pixels, crops = _cropped_pixels(reader, rows, drawn, config, views)
        geometry = crops @ drawn.warp
    if with_masks:
        found = [reader.mask(int(row)) for row in rows]
        stored = [np.zeros((1, 1), np.uint8) if mask is None else mask for mask in found for _ in range(views)]
        masks = warp_masks(stored, geometry, config.size).reshape(len(rows), views, config.size, config.size)
    batch = Batch(
        images=torch.empty(0),
        labels=torch.from_numpy(reader.labels[rows].astype(np.int64)),
        sample_ids=torch.from_numpy(reader.sample_ids[rows].astype(np.int64)),
        subspace=subspace,
        geometry=torch.from_numpy(geometry.astype(np.float32)).reshape(len(rows), views, 3, 3),
        masks=masks,
    )
    return _Raw(_planar(pixels), drawn, warps, batch)


def _finished(raw: _Raw, config: AugmentConfig, views: int, device: torch.device | str) -> Batch:
    """Return the batch with its images, made on the device."""
    if torch.device(device).type == "cpu":
        images = apply(raw.pixels, raw.parameters, config, raw.warps, _room(len(raw.pixels), config))
    else:
        pixels = raw.pixels.pin_memory().to(device, non_blocking=True)
        images = apply(pixels, raw.parameters, config, raw.warps)
    raw.batch.images = images.reshape(-1, views, *images.shape[1:])
    return raw.batch


def _normalised(pixels: Tensor, config: AugmentConfig, device: torch.device | str) -> Tensor:
    if torch.device(device).type != "cpu":
        return normalise(pixels.to(device), config)
    return normalise(pixels, config, _room(len(pixels), config))


def _room(number: int, config: AugmentConfig) -> Tensor:
    """Return (number, channels, S, S), any values, in memory of a batch that nobody holds any more, or in new memory.

    New memory is mapped page by page while it is filled: a third of all that a batch of 64 images of 224 px costs.
    """
    shape = (number, config.channels, config.size, config.size)
    for array in _rooms:
        if array.shape == shape and sys.getrefcount(array) <= _FREE:
            return torch.from_numpy(array)
    array = np.empty(shape, dtype=np.float32)
    _rooms.append(array)
    del _rooms[:-_MOST_ROOMS]
    return torch.from_numpy(array)
