from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.reader import SplitReader, open_shards
from data_shards.sources.phantoms import FACTORS, read


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    dest = tmp_path_factory.mktemp("phantoms") / "shards"
    build("phantoms", dest, size=40, options={"num_samples": 400, "label_by": "colour", "levels": 2})
    return open_shards(dest).split("train")


def test_class_is_the_documented_function_of_the_stored_factors(train: SplitReader) -> None:
    assert train.classes == ("colour0", "colour1")
    assert np.array_equal(train.labels, np.floor(train.factors["colour"] * 2))
    assert set(train.factors) == set(FACTORS)


def test_factors_are_independent_and_uniform() -> None:
    values = np.array([[record.factors[name] for name in FACTORS] for record in read(num_samples=4000).records])
    assert values.min() >= 0
    assert values.max() < 1
    assert np.abs(values.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.05


def test_masks_measure_size_and_images_show_colour(train: SplitReader) -> None:
    masks = np.stack([train.mask(row) for row in range(len(train))])
    assert set(np.unique(masks)) == {0, 255}
    area = (masks > 0).mean((1, 2))
    assert np.corrcoef(np.sqrt(area), train.factors["size"])[0, 1] > 0.9
    images = train.images(range(len(train))).astype(float)
    inside = np.array([image[mask > 0].mean() for image, mask in zip(images, masks, strict=True)])
    outside = np.array([image[mask == 0].mean() for image, mask in zip(images, masks, strict=True)])
    assert (inside < outside - 15).mean() > 0.98
    assert np.corrcoef(inside, train.factors["colour"])[0, 1] < -0.85


def test_artefacts_darken_the_skin(train: SplitReader) -> None:
    masks = np.stack([train.mask(row) for row in range(len(train))])
    images = train.images(range(len(train))).mean(3)
    dark = ((images < 110) & (masks == 0)).mean((1, 2))
    amount = train.factors["artefact"]
    assert dark[amount > 0.7].mean() > 4 * dark[amount < 0.3].mean()


def test_the_class_can_be_learned(train: SplitReader) -> None:
    pixels = train.images(range(len(train))).reshape(len(train), -1)[:, ::7]
    half = len(train) // 2
    forest = RandomForestClassifier(50, random_state=0).fit(pixels[:half], train.labels[:half])
    assert forest.score(pixels[half:], train.labels[half:]) > 0.8


def test_a_sample_depends_on_seed_and_id_alone() -> None:
    few, many, other = read(num_samples=5), read(num_samples=9), read(num_samples=5, seed=1)
    for a, b, c in zip(few.records, many.records, other.records, strict=False):
        assert a.factors == b.factors
        assert np.array_equal(a.load(3), b.load(3))
        assert not np.array_equal(a.load(3), c.load(3))
    assert few.records[0].load(1).shape == (64, 64, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_by": "color"}, r"did you mean 'colour'"),
        ({"label_by": "size+size"}, "twice"),
        ({"levels": 1}, "levels"),
        ({"num_samples": 0}, "num_samples"),
        ({"path": Path("/tmp")}, "no path"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**options)
