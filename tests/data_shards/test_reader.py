from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build import build
from data_shards.errors import DataIntegrityError, UserError
from data_shards.manifest import MANIFEST_NAME
from data_shards.reader import open_shards


@pytest.fixture
def many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_folder: Path) -> Path:
    """Eight images of 12 x 10 in several shards per split: a shard takes three of them."""
    cut_shards(monkeypatch, 1500)
    build(f"folder:{class_folder}", tmp_path / "shards", stored="raw", options={"validation": 0})
    return tmp_path / "shards"


def cut_shards(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    import data_shards.build as module

    plan = module._plan
    monkeypatch.setattr(module, "_plan", lambda listing, headers, form, _: plan(listing, headers, form, num_bytes))


def test_images_are_the_files(many_shards: Path, class_folder: Path) -> None:
    folder = open_shards(many_shards)
    assert len(folder.manifest.shards) == 6
    reader = folder.split("train")
    assert len(reader) == 8
    assert reader.uniform_shape() == (12, 10, 3)
    assert reader.labels.tolist() == [0] * 4 + [1] * 4
    assert len(set(reader.sample_ids.tolist()) | set(folder.split("test").sample_ids.tolist())) == 16
    files = sorted((class_folder / "train").rglob("*.png"))
    expected = np.stack([np.asarray(Image.open(file)) for file in files])
    rows = np.random.default_rng(0).permutation(8)
    assert np.array_equal(reader.images(rows), expected[rows])
    assert np.array_equal(np.stack([reader.image(row) for row in range(8)]), expected)
    assert [reader.path(row) for row in range(8)] == [file.relative_to(class_folder).as_posix() for file in files]
    assert reader.mask(0) is None
    assert not reader.has_masks
    with pytest.raises(IndexError):
        reader.images([8])


@pytest.mark.parametrize("stored", ["png", "jpeg", "as-is"])
def test_encoded_forms_agree_with_raw(many_shards: Path, class_folder: Path, tmp_path: Path, stored: str) -> None:
    raw = open_shards(many_shards).split("test")
    build(f"folder:{class_folder}", tmp_path / stored, stored=stored)
    reader = open_shards(tmp_path / stored).split("test")
    gap = np.abs(reader.images(range(8)).astype(int) - raw.images(range(8)))
    assert gap.mean() < (12 if stored == "jpeg" else 1e-9)  # noise is the worst case for JPEG


def test_pickled_readers_open_again(many_shards: Path) -> None:
    reader = open_shards(many_shards).split("train")
    copy = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(copy.images([5, 1]), reader.images([5, 1]))


def test_unknown_and_empty_splits_name_those_that_exist(many_shards: Path) -> None:
    folder = open_shards(many_shards)
    with pytest.raises(UserError, match=r"'tset' .* does not exist \(did you mean 'test'\?\).*train, test"):
        folder.split("tset")
    with pytest.raises(UserError, match=r"'validation' .* has no images"):
        folder.split("validation")


def test_a_flipped_bit_is_found_before_use_and_after_opening(many_shards: Path) -> None:
    reader = open_shards(many_shards).split("train")
    shard = many_shards / "train-00001.arrow"
    data = bytearray(shard.read_bytes())
    position = bytes(data).index(reader.image(4).tobytes())
    data[position + 7] ^= 16
    with open(shard, "r+b") as stream:  # in place: the open reader sees it
        stream.write(data)
    with pytest.raises(DataIntegrityError, match=r"crc32"):
        reader.image(4)
    with pytest.raises(DataIntegrityError, match=r"crc32"):
        reader.images([0, 4])
    os.utime(shard, ns=(1, 1))
    with pytest.raises(DataIntegrityError, match=r"train-00001.arrow does not match its sha256"):
        open_shards(many_shards).split("train")
    open_shards(many_shards).split("test")
    assert len(open_shards(many_shards, verify=False).split("train")) == 8


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "swapped", "link"])
def test_damaged_shards_are_refused(many_shards: Path, damage: str) -> None:
    shard, other = many_shards / "train-00000.arrow", many_shards / "test-00000.arrow"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "swapped":
        shutil.copy(other, shard)
    else:
        shard.rename(many_shards.parent / "moved.arrow")
        if damage == "link":
            shard.symlink_to(many_shards.parent / "moved.arrow")
    with pytest.raises(DataIntegrityError, match=r"train-00000\.arrow"):
        open_shards(many_shards).split("train")


def test_a_damaged_manifest_is_refused(many_shards: Path) -> None:
    path = many_shards / MANIFEST_NAME
    path.write_text(path.read_text().replace('"rows": 3', '"rows": 2', 1))
    with pytest.raises(DataIntegrityError, match="sha256"):
        open_shards(many_shards)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        open_shards(many_shards)
