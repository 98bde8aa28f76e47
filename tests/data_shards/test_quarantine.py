"""Bad images are replaced alike by everybody, told once, and stop the run when they are too many."""

from __future__ import annotations

import shutil
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.augment import AugmentConfig
from data_shards.build import build
from data_shards.errors import DataIntegrityError
from data_shards.loader import embed_loader, train_loader
from data_shards.order import BatchRule, batches
from data_shards.quarantine import TrainingReader
from data_shards.reader import CorruptImage, SplitReader, open_shards
from data_shards.samplers import blocks
from tests.data_shards.damage import spoil

CONFIG = AugmentConfig(16, channels=1, mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module", params=["raw", "png", "jpeg"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    dest = tmp_path_factory.mktemp("quarantine") / "digits"
    build("digits", dest, size=16, stored=request.param)
    return dest


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "digits"))


def training(folder: Path, max_corrupt: float = 0.01, verify: bool = True, **options: Any) -> SplitReader:
    made = partial(TrainingReader, max_corrupt=max_corrupt, **options)
    return open_shards(folder, verify).split("train", made)


def intact(folder: Path) -> np.ndarray:
    reader = open_shards(folder).split("train")
    return reader.images(range(len(reader)))


def test_substitutes_are_of_the_class_and_the_same_for_everybody(shards: Path) -> None:
    before = intact(shards)
    told: list[dict[str, Any]] = []
    reader, other = training(shards, tell=lambda **facts: told.append(facts)), training(shards)
    another_seed = training(shards, seed=1)
    bad = [3, 500, 501, 1078]
    for row in bad:
        spoil(reader, row)
    images = reader.images(range(len(reader)))
    for row in range(len(reader)):
        same = np.flatnonzero((before == images[row]).all((1, 2, 3)))
        if row in bad:
            (source,) = same
            assert source not in bad
            assert reader.labels[source] == reader.labels[row]
        else:
            assert row in same
    assert set(reader.bad) == set(bad)
    backwards = [other.image(row) for row in reversed(range(len(other)))]
    assert np.array_equal(np.stack(backwards[::-1]), images)
    assert not np.array_equal(another_seed.images(bad), images[bad])
    assert told == []  # a copy in a worker is silent; the loader tells
    reader.admit(reader.bad)
    reader.admit(reader.bad)
    assert [fact["sample_id"] for fact in told] == reader.sample_ids[bad].tolist()
    assert all("crc32" in fact["reason"] and fact["path"].startswith("digit-") for fact in told)


def test_a_substitute_that_is_bad_is_replaced_in_turn(shards: Path) -> None:
    before = intact(shards)
    reader = training(shards, max_corrupt=0.5)
    spoil(reader, 7)
    for _ in range(5):  # the substitute goes bad, five times over
        found = np.flatnonzero((before == reader.image(7)).all((1, 2, 3)))
        spoil(reader, int(found[0]))
        assert reader.labels[found[0]] == reader.labels[7]
    fresh = training(shards, max_corrupt=0.5, verify=False)  # whole files are not, images are
    assert np.array_equal(fresh.image(7), reader.image(7))
    assert len(fresh.bad) == 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_with_and_without_workers(shards: Path, num_workers: int) -> None:
    told: list[dict[str, Any]] = []
    reader = training(shards, tell=lambda **facts: told.append(facts))
    order = batches(0, 0, None, reader.labels, 1, BatchRule(32, 4, steps=20))
    bad = np.unique(np.concatenate([rows[:1] for _, rows in order[::4]]))
    for row in bad:
        spoil(reader, int(row))
    made = list(train_loader(reader, order, CONFIG, 0, 0, num_workers=num_workers))
    assert {fact["sample_id"] for fact in told} == set(reader.sample_ids[bad].tolist())
    assert len(told) == len(bad) == len(reader.bad)
    for batch, (_, rows) in zip(made, order, strict=True):
        assert np.array_equal(batch.labels, reader.labels[rows])
        assert np.array_equal(batch.sample_ids, reader.sample_ids[rows])
    resumed = training(shards, verify=False)
    late = list(train_loader(resumed, order, CONFIG, 0, 0, start_step=11))
    for one, two in zip(made[11:], late, strict=True):
        assert np.array_equal(one.images, two.images)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("allowed", "num_bad"), [(0.0, 1), (0.01, 11)])
def test_too_many_stop_with_the_number_of_them(shards: Path, num_workers: int, allowed: float, num_bad: int) -> None:
    told: list[dict[str, Any]] = []
    reader = training(shards, allowed, tell=lambda **facts: told.append(facts))
    for row in range(0, 20 * num_bad, 20):  # 1 % of 1,079 are ten
        spoil(reader, row)
    cut = blocks(len(reader), 64)
    pattern = rf"{num_bad} of 1079 images of the train split are bad, .* {allowed:.2%}.*shards verify"
    with pytest.raises(DataIntegrityError, match=pattern) as caught:
        list(embed_loader(reader, cut, CONFIG, num_workers=num_workers))
    assert caught.value.exit_code == 3
    assert len(told) == num_bad


def test_evaluation_stops_at_the_first(shards: Path) -> None:
    reader = open_shards(shards).split("validation")
    spoil(reader, 5)
    with pytest.raises(CorruptImage, match=r"Image \d+ \(digit-\d+\) in .*validation-00000.arrow is bad") as caught:
        list(embed_loader(reader, blocks(len(reader), 64), CONFIG))
    assert (caught.value.row, caught.value.exit_code) == (5, 3)


def test_a_class_without_intact_images(shards: Path) -> None:
    reader = training(shards, max_corrupt=0.9)
    for row in np.flatnonzero(reader.labels == 4):
        spoil(reader, int(row))
    with pytest.raises(DataIntegrityError, match="No image of the class '4' in the train split is intact"):
        reader.image(int(np.flatnonzero(reader.labels == 4)[0]))


def test_undecodable_images_are_replaced_where_nothing_is_verified(tmp_path: Path) -> None:
    build("digits", tmp_path / "digits", size=16, stored="png")
    reader = training(tmp_path / "digits", verify=False)
    shard, local = reader._locate(9)
    data = bytearray(shard.path.read_bytes())
    start = bytes(data).index(shard.image_bytes(local).tobytes())
    data[start : start + 30] = b"\xff" * 30
    shard.path.write_bytes(data)
    reader = training(tmp_path / "digits", verify=False)
    shard, local = reader._locate(9)
    shard.crcs[local] = zlib.crc32(shard.image_bytes(local))  # as if it had been written so
    assert reader.image(9).shape == (16, 16, 1)
    assert "cannot be decoded" in reader.bad[9]
