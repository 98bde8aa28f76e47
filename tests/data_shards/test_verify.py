from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.manifest import MANIFEST_NAME, read_manifest, to_json
from data_shards.reader import open_shards
from data_shards.verify import verify
from data_shards.writer import Row, write_shard


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("verify") / "shards"
    build("phantoms", dest, stored="jpeg", options={"num_samples": 40, "pixels": 32})
    return dest


def test_a_hundred_bit_flips_are_found_and_no_other(intact: Path) -> None:
    rng = np.random.default_rng(7)
    shards = sorted(intact.glob("*.arrow"))
    found = 0
    for _ in range(100):
        shard = shards[rng.integers(len(shards))]
        data = shard.read_bytes()
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        shard.write_bytes(flipped)
        problems = verify(intact)
        found += len(problems) == 1 and shard.name in problems[0]
        shard.write_bytes(data)
        assert verify(intact) == []
    assert found == 100


def test_the_damaged_image_is_named(intact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)
    reader = open_shards(intact).split("test")
    shard = reader._shards[0]
    data = bytearray((folder / "test-00000.arrow").read_bytes())
    start = bytes(data).index(shard.image_bytes(3).tobytes())
    data[start + 20] ^= 4
    (folder / "test-00000.arrow").write_bytes(data)
    (problem,) = verify(folder)
    assert f"1 image(s) damaged: {reader.sample_ids[3]} ({reader.path(3)})" in problem


def test_missing_truncated_strange_and_manifest_damage(intact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)
    shutil.copy(folder / "test-00000.arrow", folder / "test-00007.arrow")
    (folder / "train-00000.arrow").write_bytes(b"")
    (folder / "validation-00000.arrow").unlink()
    problems = " ".join(verify(folder))
    for text in ("test-00007.arrow: not listed", "train-00000.arrow has 0 bytes", "validation-00000.arrow is missing"):
        assert text in problems
    (folder / MANIFEST_NAME).write_text("{}")
    assert len(verify(folder)) == 1
    with pytest.raises(UserError):
        verify(folder / "nowhere")


def test_sums_are_compared(intact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)
    manifest = read_manifest(folder)
    rows = [Row(5, 0, "", "x", 1, 1, 3, b"abc", factors=dict.fromkeys(manifest.factors, 0.0))] * 2
    entry = write_shard(folder / "train-00001.arrow", "train", rows, manifest.factors)
    counts = {split: dict(classes) for split, classes in manifest.counts.items()}
    counts["train"][manifest.classes[1]] += 2
    (folder / MANIFEST_NAME).write_text(to_json(replace(manifest, shards=(*manifest.shards, entry), counts=counts)))
    problems = " ".join(verify(folder))
    assert "sample ids occur twice" in problems
    assert "images per class" in problems
