from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from data_shards.build import REJECTED_NAME, build
from data_shards.decode import Unreadable
from data_shards.reader import open_shards
from data_shards.sources.chest import read
from data_shards.sources.chest_siim import decoded


def encoded(mask: np.ndarray) -> str:
    """Return the runs of a mask by walking down its columns."""
    words, skipped, run = [], 0, 0
    for inside in [*mask.T.ravel(), False]:
        if inside:
            run += 1
        elif run:
            words += [skipped, run]
            skipped, run = 1, 0
        else:
            skipped += 1
    return " ".join(map(str, words))


@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_runs_are_decoded(mask: np.ndarray, num_parts: int) -> None:
    owner = np.random.default_rng(0).integers(0, num_parts, mask.shape)
    texts = tuple(encoded(mask & (owner == part)) for part in range(num_parts))
    assert np.array_equal(decoded(texts, *mask.shape) > 0, mask)


@pytest.mark.parametrize("text", ["1", "1 x", "5 30", "-1 2", "0 99999999999999999999", "1 2 3", "3 3 " * 9])
def test_runs_that_leave_the_image(text: str) -> None:
    with pytest.raises(Unreadable, match="encoded mask"):
        decoded((text,), 5, 6)


def publish(root: Path, masks: dict[str, list[np.ndarray]], suffix: str = ".png") -> Path:
    """Write the table (with the blank that the publisher's has in its header) and the images."""
    rows = ["ImageId, EncodedPixels"]
    for name, parts in masks.items():
        rows += [f"{name}, {encoded(part)}" for part in parts] or [f"{name}, -1"]
    root.mkdir()
    (root / "train-rle.csv").write_text("\n".join(rows) + "\n")
    for number, name in enumerate(masks):
        pixels = np.full((32, 48), 10 * number, np.uint8)
        if suffix == ".png":
            (root / "png").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / "png" / f"{name}.png")
        else:
            dicom(root / "dicom-images-train" / f"study{number}" / "series" / f"{name}.dcm", pixels)
    return root


def dicom(path: Path, pixels: np.ndarray) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 128, 256, "LINEAR_EXACT"
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True)
    dataset.save_as(path, enforce_file_format=True)


def some_masks(num: int) -> dict[str, list[np.ndarray]]:
    masks: dict[str, list[np.ndarray]] = {}
    for number in range(num):
        one, two = np.zeros((2, 32, 48), bool)
        one[number % 10 : 20, 5:15], two[10:30, 30:40] = True, True
        masks[f"1.2.{num - number:03d}"] = [] if number % 3 == 0 else [one, two][: 1 + number % 2]
    return masks


@pytest.mark.parametrize("suffix", [".png", ".dcm"])
def test_a_miniature(tmp_path: Path, suffix: str) -> None:
    masks = some_masks(15)
    root = publish(tmp_path / "set", masks, suffix)
    manifest = build(f"chest:{root}", tmp_path / "dest", size=48, options={"channels": 1})
    assert (manifest.rejected, manifest.channels, manifest.fit) == (0, 1, "stretch")
    counts = {split: manifest.num_rows(split) for split in manifest.splits}
    assert counts == {"train": 4, "validation": 1, "test": 5}
    folder, names = open_shards(tmp_path / "dest"), []
    for split in ("validation", "train", "test"):
        reader = folder.split(split)
        for row in range(len(reader)):
            name = Path(reader.path(row)).name.removesuffix(suffix)
            names.append(name)
            wanted = Image.fromarray(np.any(masks[name], axis=0)).resize((48, 48))
            assert ((reader.mask(row) > 0) == np.asarray(wanted)).mean() > 0.97
            assert np.abs(reader.image(row).astype(int) - 10 * [*masks].index(name)).max() <= 1
    assert names == sorted(name for name, parts in masks.items() if parts)


def test_the_full_list_is_halved(tmp_path: Path) -> None:
    (tmp_path / "png").mkdir()
    rows = ["ImageId, EncodedPixels"]
    for number in range(2669):
        rows += [f"{number:05d}, 1 1", f"{number:05d}, 9 1"][: 1 + number % 2]
        (tmp_path / "png" / f"{number:05d}.png").touch()
    (tmp_path / "train-rle.csv").write_text("\n".join([*rows, "negative, -1"]) + "\n")
    listing = read(tmp_path)
    assert listing.warnings == ()
    assert {split: of["chest"] for split, of in listing.counts().items()} == {
        "train": 1068,
        "validation": 266,
        "test": 1335,
    }


def test_broken_rows_and_missing_files(tmp_path: Path) -> None:
    root = publish(tmp_path / "set", some_masks(9))
    with open(root / "train-rle.csv", "a") as stream:
        stream.write("1.2.009, 4000 5\n1.2.900, 1 1\n")
    manifest = build(f"chest:{root}", tmp_path / "dest", size=32)
    with open(tmp_path / "dest" / REJECTED_NAME, newline="") as stream:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    assert reasons == {"png/1.2.009.png": "the encoded mask does not fit 48 x 32 pixels"}
    assert "1 image(s) were left out, which the table has and no file: 1.2.900." in manifest.warnings
