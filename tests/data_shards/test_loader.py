"""Loaders: the same tensors for any workers, ranks and starting step; geometry and masks belong to the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from data_shards.augment import AugmentConfig, box_matrix, crop_box, crop_boxes, draw, draw_views
from data_shards.errors import DataIntegrityError, UserError
from data_shards.loader import Batch, class_counts, embed_loader, eval_images, train_loader
from data_shards.order import BatchRule, batches
from data_shards.samplers import batch_slice, blocks

CLASSES = ("a", "b", "c")
AUGMENTED: dict[str, Any] = {"hflip": True, "rotate_degrees": 30, "brightness": 0.2, "saturation": 0.2}


class MemoryReader:
    """Images in a list, with the interface of a split reader."""

    def __init__(self, images: list[np.ndarray], masks: list[np.ndarray] | None = None, damaged: int = -1) -> None:
        self.stored, self.masks, self.damaged = images, masks, damaged
        self.classes = CLASSES
        self.labels = (np.arange(len(images)) % 3).astype(np.int32)
        self.sample_ids = np.arange(len(images), dtype=np.int64) * 13 + 4
        self.has_masks = masks is not None
        self.asked: list[tuple[int, int] | None] = []
        self.bad: dict[int, str] = {}

    def admit(self, found: dict[int, str]) -> None:
        assert not found

    def uniform_shape(self) -> tuple[int, int, int] | None:
        shapes = {i.shape for i in self.stored}
        return shapes.pop() if len(shapes) == 1 else None

    def image(self, row: int, min_size: tuple[int, int] | None = None) -> np.ndarray:
        self.asked.append(min_size)
        if row == self.damaged:
            raise DataIntegrityError(f"image {row} is damaged")
        return self.stored[row]

    def images(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self.image(int(row)) for row in rows])

    def mask(self, row: int) -> np.ndarray | None:
        return None if self.masks is None else self.masks[row]


def uniform_reader(size: int = 20, channels: int = 3) -> MemoryReader:
    rng = np.random.default_rng(0)
    return MemoryReader(list(rng.integers(0, 256, (60, size, size, channels), dtype=np.uint8)))


def mixed_reader() -> MemoryReader:
    rng = np.random.default_rng(0)
    shapes = [(int(h), int(w), c) for h, w, c in zip(*rng.integers(20, 50, (2, 60)), [1, 3] * 30, strict=True)]
    return MemoryReader([rng.integers(0, 256, s, dtype=np.uint8) for s in shapes])


def epoch_of(reader: MemoryReader, steps: int = 7) -> list[Any]:
    """Seven batches of a split that five exhaust: rows come up again."""
    return batches(0, 1, None, reader.labels, 1, BatchRule(12, 4, steps=steps))


def _centres(size: int) -> np.ndarray:
    """(3, S, S) homogeneous coordinates x, y, 1 of the pixel centres."""
    centres = (2 * np.arange(size) + 1) / size - 1
    return np.stack([*np.meshgrid(centres, centres), np.ones((size, size))])


def equal(a: Batch, b: Batch) -> bool:
    same = all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("images", "labels", "sample_ids", "geometry"))
    return same and a.subspace == b.subspace


READERS = {
    "uniform": (uniform_reader, AugmentConfig(20, **AUGMENTED)),
    "magnified": (uniform_reader, AugmentConfig(20, crop_scale=(0.3, 1.0), **AUGMENTED)),
    "cropped": (lambda: uniform_reader(32), AugmentConfig(20, crop_scale=(0.3, 1.0), **AUGMENTED)),
    "mixed": (mixed_reader, AugmentConfig(16, crop_scale=(0.3, 1.0), **AUGMENTED)),
}
Case = tuple[Callable[[], MemoryReader], AugmentConfig]


@pytest.mark.parametrize("case", READERS.values(), ids=READERS)
def test_ranks_and_restarts_see_the_same_tensors(case: Case) -> None:
    reader, config = case[0](), case[1]
    order = epoch_of(reader)
    whole = list(train_loader(reader, order, config, 0, 1, views=2))
    assert [b.images.shape for b in whole] == [(12, 2, 3, config.size, config.size)] * 7
    for (k, rows), batch in zip(order, whole, strict=True):
        assert batch.subspace == k
        assert np.array_equal(batch.sample_ids.numpy(), reader.sample_ids[rows])
        assert np.array_equal(batch.labels.numpy(), reader.labels[rows])
    cuts = [batch_slice(12, 3, rank, 3) for rank in range(3)]
    parts = [list(train_loader(reader, order, config, 0, 1, views=2, position=cut)) for cut in cuts]
    for step in range(7):
        assert torch.equal(torch.cat([p[step].images for p in parts]), whole[step].images)
    assert all(map(equal, train_loader(reader, order, config, 0, 1, views=2, start_step=4), whole[4:]))
    both = next(iter(train_loader(reader, order, config, 0, 1, views=2, position=[(0, 4), (8, 12)])))
    assert torch.equal(both.images, torch.cat([parts[0][0].images, parts[2][0].images]))


@pytest.mark.parametrize("case", READERS.values(), ids=READERS)
def test_workers_change_nothing(case: Case) -> None:
    reader, config = case[0](), case[1]
    order, state = epoch_of(reader), torch.get_rng_state()
    inline = list(train_loader(reader, order, config, 0, 1, views=2))
    assert all(map(equal, train_loader(reader, order, config, 0, 1, views=2, num_workers=2), inline))
    cut = blocks(60, 25)
    here, there = (list(embed_loader(reader, cut, config, num_workers=n)) for n in (0, 1))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(here, there, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_spawned_workers_change_nothing() -> None:
    reader, config = uniform_reader(), READERS["uniform"][1]
    order = epoch_of(reader, steps=2)
    spawned = train_loader(reader, order, config, 0, 1, num_workers=1, start_method="spawn")
    assert all(map(equal, spawned, train_loader(reader, order, config, 0, 1)))


def test_views_and_visits_of_an_image_differ() -> None:
    reader, config = uniform_reader(), READERS["uniform"][1]
    rows = np.array([3, 3, 5], dtype=np.int64)
    batch, later = train_loader(reader, [(0, rows), (0, rows)], config, 0, 0, views=2)
    pictures = [*batch.images[:2].flatten(0, 1), *later.images[:2].flatten(0, 1)]
    assert len({p.numpy().tobytes() for p in pictures}) == 8


@pytest.mark.parametrize(("stored", "crop"), [(64, (1.0, 1.0)), (120, (1.0, 1.0)), (120, (0.3, 0.6)), (72, (0.3, 0.6))])
def test_the_geometry_leads_back_to_the_stored_pixels(stored: int, crop: tuple[float, float]) -> None:
    size = 64
    ramp = np.arange(stored) * 2
    gradient = np.stack([*np.meshgrid(ramp, ramp), np.zeros((stored, stored))], axis=-1).astype(np.uint8)
    config = AugmentConfig(
        size, crop_scale=crop, hflip=True, vflip=True, rotate90=True, rotate_degrees=20, translate=0.1, shear=10,
        scale=(0.9, 1.3), padding="border", mean=(0.0,), std=(1.0,),
    )  # fmt: skip
    reader = MemoryReader([gradient] * 30)
    batch = next(iter(train_loader(reader, [(0, np.arange(30))], config, 0, 0)))
    warps = draw(config, 0, 0, reader.sample_ids).warp
    grid = _centres(size)
    for image, m, warp in zip(batch.images[:, 0].numpy(), batch.geometry[:, 0].numpy(), warps, strict=True):
        expected = (np.tensordot(m, grid, 1)[:2] + 1) * stored - 1
        # Away from the padding around the crop, and from the edge of the image where the resize filter is cut off.
        sure = (np.abs(np.tensordot(warp, grid, 1)[:2]) < 1 - 2 / size).all(0)
        sure &= ((expected > 8) & (expected < 2 * stored - 10)).all(0)
        assert sure.mean() > 0.4
        assert np.abs(image[:2] * 255 - expected)[:, sure].max() < 0.75  # pixels were rounded to whole numbers


def test_a_crop_inside_the_warp_is_the_crop_that_pillow_makes() -> None:
    reader, one_by_one = uniform_reader(), uniform_reader()
    one_by_one.stored.append(np.zeros((7, 7, 3), np.uint8))  # no common size any more
    config = AugmentConfig(20, crop_scale=(0.3, 1.0), hflip=True, mean=(0.0,), std=(1.0,))
    for fast, slow in zip(
        *(train_loader(r, epoch_of(reader), config, 0, 0) for r in (reader, one_by_one)), strict=True
    ):
        assert torch.equal(fast.geometry, slow.geometry)
        assert (fast.images - slow.images).abs().max() * 255 < 1.5  # Pillow rounds twice


def test_masks_are_seen_through_the_geometry_of_the_image() -> None:
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.integers(0, 2, (5, 6)), np.ones((8, 8))).astype(np.uint8) * 255 for _ in range(30)]
    reader = MemoryReader([np.repeat(m[:, :, None], 3, axis=2) for m in masks], masks)
    config = AugmentConfig(
        32, crop_scale=(0.4, 1.0), hflip=True, rotate_degrees=40, padding="zeros", mean=(0.0,), std=(1.0,)
    )
    batch = next(iter(train_loader(reader, epoch_of(reader), config, 0, 0, views=2, with_masks=True)))
    assert batch.masks is not None
    assert batch.masks.shape == (12, 2, 32, 32)
    grid = _centres(32)
    warps = draw_views(config, 0, 0, batch.sample_ids.numpy(), 2).warp.reshape(12, 2, 3, 3)
    in_crop = torch.from_numpy((np.abs(np.tensordot(warps, grid, 1)[:, :, :2]) < 1).all(2))
    for value, sure in ((255, batch.images[:, :, 0] > 0.98), (0, batch.images[:, :, 0] < 0.02)):
        assert (sure & in_crop).float().mean() > 0.15
        assert (batch.masks[sure & in_crop] == value).float().mean() > 0.99
    without = train_loader(uniform_reader(), epoch_of(reader), AugmentConfig(20), 0, 0, with_masks=True)
    assert not next(iter(without)).masks.any()  # type: ignore[union-attr]


def test_evaluation_is_plain_for_images_of_the_final_size() -> None:
    reader, config = uniform_reader(), AugmentConfig(20, mean=(0.0,), std=(1.0,), **AUGMENTED)
    for rows, images in embed_loader(reader, blocks(60, 16), config):
        expected = np.stack([reader.stored[row] for row in rows]).transpose(0, 3, 1, 2)
        assert np.array_equal(np.rint(images.numpy() * 255), expected)


def test_evaluation_does_not_depend_on_the_blocks() -> None:
    reader, config = mixed_reader(), AugmentConfig(16)
    whole = eval_images(reader, np.arange(60), config)
    for rows, images in embed_loader(reader, blocks(60, 7), config):
        assert torch.equal(images, whole[rows])
    assert set(reader.asked) == {(19, 19)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_user_errors_come_out_as_they_are(num_workers: int) -> None:
    reader = uniform_reader()
    reader.damaged = 7
    order = [(0, np.array([1, 2])), (0, np.array([7, 8]))]
    stream = iter(train_loader(reader, order, AugmentConfig(20), 0, 0, num_workers=num_workers))
    next(stream)
    with pytest.raises(DataIntegrityError, match=r"^image 7 is damaged$"):
        next(stream)
    with pytest.raises(UserError, match="3 channels"):
        list(embed_loader(mixed_reader(), blocks(60, 9), AugmentConfig(16, channels=1), num_workers=num_workers))


def test_class_counts_keep_empty_classes() -> None:
    reader = uniform_reader()
    reader.labels[:] = 2
    assert class_counts(reader) == {"a": 0, "b": 0, "c": 60}


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    reader, config = uniform_reader(), AugmentConfig(20)
    order = epoch_of(reader)
    kept = list(train_loader(reader, order, config, 0, 1))
    values = [batch.images.clone() for batch in kept]
    held, places = kept[0].images[2:3, 0].numpy(), set()
    del kept[0]
    for batch in train_loader(reader, order, config, 0, 2):
        places.add(batch.images.data_ptr())
        batch.images.zero_()
    assert all(torch.equal(batch.images, value) for batch, value in zip(kept, values[1:], strict=True))
    assert np.array_equal(held, values[0][2:3, 0].numpy())
    assert len(places) <= 3


def test_a_batch_in_parts_is_the_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for make, config in READERS.values():
        whole = list(train_loader(make(), epoch_of(make()), config, 0, 1))
        monkeypatch.setattr("data_shards.augment_batch._CELLS", 1)
        monkeypatch.setattr("data_shards.stretch._CELLS", 1)
        assert all(map(equal, train_loader(make(), epoch_of(make()), config, 0, 1), whole))
        monkeypatch.undo()


def test_boxes_of_a_batch_are_those_of_its_images_to_the_last_bit() -> None:
    crops = draw(AugmentConfig(20, crop_scale=(0.1, 1.0)), 0, 0, np.arange(500)).crop
    boxes = crop_boxes(crops, 37, 52)
    assert boxes.tolist() == [list(crop_box(crop, 37, 52)) for crop in crops]
    assert np.array_equal(box_matrix(boxes, 37, 52), [box_matrix(tuple(box), 37, 52) for box in boxes])  # type: ignore[arg-type]
