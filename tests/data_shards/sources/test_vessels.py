from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.field_of_view import fundus_region
from data_shards.reader import SplitReader, open_shards
from data_shards.sources.vessels import FACTORS, draw, landmarks, pose_of, read


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    dest = tmp_path_factory.mktemp("vessels") / "shards"
    manifest = build("vessels", dest, size=128, options={"num_samples": 40})
    assert (manifest.classes, manifest.factors, manifest.has_masks) == (("fundus",), FACTORS, True)
    assert {split: manifest.num_rows(split) for split in manifest.splits} == {"train": 24, "validation": 8, "test": 8}
    return open_shards(dest).split("train")


def means_at(reader: SplitReader, number: int, radius: float) -> np.ndarray:
    """Return the mean green of every image in a circle around one of its stored landmarks."""
    y, x = np.mgrid[:128, :128]
    found = []
    for row in range(len(reader)):
        far = np.hypot(x - reader.factors[f"landmark{number}_x"][row], y - reader.factors[f"landmark{number}_y"][row])
        found.append(reader.image(row)[far <= radius, 1].mean())
    return np.array(found)


def test_landmarks_are_where_disc_and_fovea_are(train: SplitReader) -> None:
    green = np.array([train.image(row)[..., 1][train.image(row).max(axis=2) > 20].mean() for row in range(len(train))])
    assert (means_at(train, 0, 4) > green + 25).all()
    assert (means_at(train, 1, 4) < green - 10).all()


def test_the_disc_is_centred_on_its_landmark() -> None:
    for index in range(6):
        image, mask = draw(0, index, 256)
        x, y = landmarks(0, index, 256)[0]
        rows, columns = np.mgrid[:256, :256]
        near = (np.hypot(columns - x, rows - y) < 30) & (mask == 0) & (image[..., 2] > 90)
        assert np.hypot(columns[near].mean() - x, rows[near].mean() - y) < 5


def test_landmarks_are_one_place_of_the_anatomy_in_every_pose() -> None:
    places = np.stack([landmarks(0, index, 100) for index in range(300)])
    apart = np.hypot(*(places[:, 0] - places[:, 1]).T)
    zooms = np.array([pose_of(0, index).zoom for index in range(300)])
    assert np.ptp(apart / zooms) < 1e-9
    assert places.std(axis=0).min() > 1.5  # poses differ
    assert places.min() > 5 and places.max() < 95
    assert np.allclose((landmarks(3, 1, 400) + 0.5) / 400, (landmarks(3, 1, 100) + 0.5) / 100)


def test_vessels_are_darker_than_what_is_beside_them(train: SplitReader) -> None:
    for row in range(len(train)):
        image, mask = train.image(row)[..., 1].astype(float), train.mask(row) > 0
        assert set(np.unique(train.mask(row))) == {0, 255}
        assert 0.04 < mask.mean() < 0.15
        lit = train.image(row).max(axis=2) > 40
        assert image[mask].mean() < image[lit & ~mask].mean() - 12
        top, bottom, left, right = fundus_region(train.image(row))
        assert bottom - top > 120 and right - left > 120


def test_a_sample_depends_on_seed_and_id_alone() -> None:
    few, many, other = read(num_samples=3, pixels=64), read(num_samples=5, pixels=64), read(num_samples=3, seed=1)
    for a, b, c in zip(few.records, many.records, other.records, strict=False):
        assert a.factors == b.factors and a.factors != c.factors
        assert np.array_equal(a.load(3), b.load(3))
    assert few.records[0].load(1).shape == (64, 64, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_samples": 0}, "num_samples"), ({"pixels": 32}, "pixels"), ({"path": Path("/tmp")}, "no path")],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**options)


def test_images_of_another_size_would_have_other_landmarks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vessels has lengths in pixels, of 64 a side; leave out --size"):
        build("vessels", tmp_path / "dest", size=96, options={"pixels": 64, "num_samples": 4})
    manifest = build("vessels", tmp_path / "dest", options={"pixels": 64, "num_samples": 4})
    assert manifest.image_size == 64
