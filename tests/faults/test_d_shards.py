"""Shards that are cut, swapped, flipped, rewritten or forged: nothing of them is trained on without a word."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_shards.build import build
from data_shards.errors import DataIntegrityError, UserError
from data_shards.manifest import MANIFEST_NAME, canonical_json, read_manifest, to_json
from data_shards.order import BatchRule, batches
from data_shards.quarantine import TrainingReader
from data_shards.reader import open_shards
from data_shards.verify import verify
from data_shards.writer import Row, write_shard
from tests.data_shards.damage import flip_bit, span_of

FLIPS = 300
FORMS = ("raw", "png", "jpeg", "as-is")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 60 small JPEG and PNG files in two classes."""
    root = tmp_path_factory.mktemp("photographs") / "set"
    rng = np.random.default_rng(0)
    for number in range(60):
        rough = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((40, 40))
        place = root / ("train" if number < 40 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        rough.save(place / f"{number}.{'png' if number % 3 == 0 else 'jpg'}")
    return root


@pytest.fixture(scope="module")
def built(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a shard folder per stored form."""
    root = tmp_path_factory.mktemp("built")
    for form in FORMS:
        size = None if form == "as-is" else 32
        build(f"folder:{photographs}", root / form, size, form, options={"validation": 0.1})
    return {form: root / form for form in FORMS}


@pytest.fixture
def shards(built: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a copy of a shard folder to spoil."""
    return lambda form: Path(shutil.copytree(built[form], tmp_path / form))


def read_all(folder: Path) -> None:
    """Open every split and read every image, as training and evaluation do."""
    opened = open_shards(folder)
    for split in opened.manifest.splits:
        reader = opened.split(split)
        for row in range(len(reader)):
            reader.image(row)


def refused(action: Callable[[], object]) -> bool:
    """Return whether the action ends with exit code 3 (2 for a manifest of another version)."""
    try:
        action()
    except UserError as error:
        assert error.exit_code == 3 or "schema version" in str(error)
        return True
    return False


def test_d1_truncated_empty_missing_swapped(record: Any, shards: Callable[[str], Path]) -> None:
    folder = shards("png")
    names = [entry.file for entry in read_manifest(folder).shards]
    before = {name: (folder / name).read_bytes() for name in names}
    injected = detected = 0
    for name in names:
        data = before[name]
        cuts = [data[: int(len(data) * share)] for share in (0.1, 0.5, 0.9, 0.999)]
        others = [before[other] for other in names if other != name]
        for spoilt in [*cuts, b"", None, *others]:
            (folder / name).unlink()
            if spoilt is not None:
                (folder / name).write_bytes(spoilt)
            injected += 1
            detected += refused(lambda: read_all(folder)) and verify(folder) != []
            (folder / name).write_bytes(data)
    read_all(folder)
    assert detected == injected
    record("D1", "cut at 10, 50, 90, 99.9 %, empty, missing, another valid shard", injected=injected, detected=detected)


@pytest.mark.parametrize("form", FORMS)
def test_d2_single_bit_flips(form: str, record: Any, shards: Callable[[str], Path]) -> None:
    folder = shards(form)
    rng = np.random.default_rng(FORMS.index(form))
    files = sorted(folder.iterdir())
    sizes = np.array([file.stat().st_size for file in files])
    silent = 0
    for _ in range(FLIPS):
        file = files[rng.choice(len(files), p=sizes / sizes.sum())]
        position, bit = int(rng.integers(file.stat().st_size)), int(rng.integers(8))
        was = file.read_bytes()
        flip_bit(file, position, bit)
        assert file.read_bytes() != was
        silent += not refused(lambda: read_all(folder))
        flip_bit(file, position, bit)
    read_all(folder)
    assert silent == 0
    record("D2", f"one flipped bit, stored {form}", trials=FLIPS, silent=silent, seed=FORMS.index(form))


@pytest.mark.parametrize("form", FORMS)
def test_d2_flips_of_image_bytes_under_an_open_reader(form: str, record: Any, shards: Callable[[str], Path]) -> None:
    folder = shards(form)
    reader = open_shards(folder).split("train")
    rng = np.random.default_rng(1)
    silent = 0
    for _ in range(FLIPS):
        row = int(rng.integers(len(reader)))
        file, start, stop = span_of(reader, row)
        position, bit = int(rng.integers(start, stop)), int(rng.integers(8))
        flip_bit(file, position, bit)
        silent += not refused(lambda: reader.image(row))  # noqa: B023
        flip_bit(file, position, bit)
        reader.image(row)
    assert silent == 0
    record("D2", f"one bit flipped under an open reader, stored {form}", trials=FLIPS, silent=silent, seed=1)


def forged(folder: Path, **changes: Any) -> None:
    """Change the manifest and sign it again, as somebody would who wants to be believed."""
    path = folder / MANIFEST_NAME
    content = {**json.loads(path.read_text()), **changes}
    content.pop("sha256")
    path.write_text(json.dumps({**content, "sha256": hashlib.sha256(canonical_json(content)).hexdigest()}))


def test_d6_manipulated_manifests(record: Any, shards: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shards("raw")
    text = (folder / MANIFEST_NAME).read_text()
    entries = json.loads(text)["shards"]
    outside = tmp_path / "train-00000.arrow"
    shutil.copy(folder / entries[0]["file"], outside)
    first = {"rows": entries[0]["rows"] + 1}, {"rows": -1}, {"rows": "8"}, {"bytes": 0}, {"sha256": "0" * 64}
    names = (
        "../train-00000.arrow",
        str(outside),
        "train-00000.arrow/..",
        "train-00000.arrow\0",
        "TRAIN-00000.arrow",
        7,
    )
    cases = [{"shards": [{**entries[0], **change}, *entries[1:]]} for change in first]
    cases += [{"shards": [{**entries[0], "file": name}, *entries[1:]]} for name in names]
    cases += [{"shards": [*entries, entries[0]]}, {"shards": []}, {"shards": None}, {"classes": ["a"]}, {"counts": {}}]
    cases += [{"stored": "png"}, {"channels": 1.5}, {"factors": ["../x"]}, {"schema_version": 99}, {"extra": 1}]
    caught = 0
    for changes in cases:
        forged(folder, **changes)
        caught += refused(lambda: read_all(folder))
        (folder / MANIFEST_NAME).write_text(text)
    for bit in range(8 * len(text)):
        spoilt = bytearray(text.encode())
        spoilt[bit // 8] ^= 1 << bit % 8
        if bit % 97 == 0:
            (folder / MANIFEST_NAME).write_bytes(spoilt)
            cases.append({})
            caught += refused(lambda: read_all(folder))
    (folder / MANIFEST_NAME).write_text(text)
    shard = folder / entries[0]["file"]
    shard.unlink()
    shard.symlink_to(outside)
    caught += refused(lambda: read_all(folder))
    assert caught == len(cases) + 1
    record("D6", "flipped, wrong rows, double shard, paths that leave, links, forged sums", cases=len(cases) + 1,
           refused=caught)  # fmt: skip


def test_d7_rewritten_under_an_open_reader(record: Any, shards: Callable[[str], Path]) -> None:
    """Another size is found before a byte is touched (beyond the end of the file it would be SIGBUS)."""
    cases = {
        "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
        "emptied": lambda path: os.truncate(path, 0),
        "grown": lambda path: path.write_bytes(path.read_bytes() * 2),
        "removed": lambda path: path.unlink(),
        "zeroed": lambda path: path.open("r+b").write(b"\0" * path.stat().st_size),
    }
    slowest = 0.0
    for name, rewrite in cases.items():
        folder = shards("raw")
        opened = open_shards(folder)
        reader = opened.split("train", partial(TrainingReader, max_corrupt=0.01))
        path = folder / "train-00000.arrow"
        rewrite(path)
        began = time.monotonic()
        with pytest.raises(DataIntegrityError, match=r"train-00000\.arrow|verify") as caught:
            reader.images(range(len(reader)))
        assert caught.value.exit_code == 3, name
        with pytest.raises(DataIntegrityError):
            open_shards(folder).split("train")  # a resumed run, or a worker that starts
        slowest = max(slowest, time.monotonic() - began)
        shutil.rmtree(folder)
    record("D7", "cut, emptied, grown, removed, zeroed in place", detected_s=slowest, cases=len(cases), rc=3)


def rewritten(folder: Path, change: Callable[[Row], Row], factors: tuple[str, ...] = ()) -> None:
    """Write the training shard anew with changed rows, and sign it."""
    manifest = read_manifest(folder)
    reader = open_shards(folder).split("train")
    rows = [
        Row(
            int(reader.sample_ids[i]),
            int(reader.labels[i]),
            "",
            "x",
            *image.shape,
            image.tobytes(),
            factors=dict.fromkeys(factors, 0.5),
        )
        for i, image in enumerate(reader.images(range(len(reader))))
    ]
    entry = write_shard(folder / "train-00000.arrow", "train", [change(row) for row in rows], factors)
    kept = [shard for shard in manifest.shards if shard.split != "train"]
    (folder / MANIFEST_NAME).write_text(to_json(replace(manifest, shards=(entry, *kept), factors=factors)))


def test_d8_labels_factors_sizes_and_classes(record: Any, shards: Callable[[str], Path]) -> None:
    wrong: dict[str, Callable[[Row], Row]] = {
        "label above": lambda row: replace(row, label=2),
        "label below": lambda row: replace(row, label=-1),
        "no channel": lambda row: replace(row, channels=0),
        "too wide": lambda row: replace(row, width=1 << 30),
        "negative height": lambda row: replace(row, height=-row.height, width=-row.width),
        "fewer bytes": lambda row: replace(row, image=row.image[:-1]),
    }
    for change in wrong.values():
        folder = shards("raw")
        rewritten(folder, change)
        with pytest.raises(DataIntegrityError, match=r"train-00000\.arrow"):
            open_shards(folder).split("train")
        shutil.rmtree(folder)
    folder = shards("raw")
    for entry in read_manifest(folder).shards[1:]:
        (folder / entry.file).unlink()
    manifest = read_manifest(folder)
    (folder / MANIFEST_NAME).write_text(to_json(replace(manifest, shards=manifest.shards[:1], counts={
        "train": manifest.counts["train"]})))  # fmt: skip
    rewritten(folder, lambda row: replace(row, factors={"age": float("nan")}), ("age",))
    with pytest.raises(DataIntegrityError, match="not finite"):
        open_shards(folder).split("train")

    rule = BatchRule(8, 4, steps=5)
    single, lonely = np.zeros(20, np.int32), np.array([0] * 10 + [2] * 10 + [5], np.int32)  # classes 1, 3, 4 are empty
    with pytest.raises(UserError, match="one class only"):
        batches(0, 0, None, single, 1, rule)
    with pytest.raises(UserError, match="training split is empty"):
        batches(0, 0, None, single[:0], 1, rule)
    drawn = Counter(lonely[np.concatenate([rows for _, rows in batches(0, 0, None, lonely, 1, rule)])].tolist())
    assert set(drawn) == {0, 2}
    record("D8", "labels out of range, impossible sizes, NaN factor, empty class, single class", cases=len(wrong) + 4)
