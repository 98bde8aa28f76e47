"""`Embedder`: the vectors of a run for anything that is an image, in a notebook and in scikit-learn."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import estimator_checks

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.reader import SplitReader, open_shards
from launch import build as parts
from launch.embedder import Embedder
from launch.exported import export_run
from launch.trained import alone, config_of, load, unchanged
from tests.launch.best_run import best_run
from tests.runs import ROOT
from trainer import evaluate

SIZE = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders of colour pictures that are neither square nor of the size of the shards."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for tone, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for number in range(12):
            pixels = rng.integers(120 * tone, 120 * tone + 100, (40, 52, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    build(f"folder:{photos}", folder / "shards", size=28)
    with unchanged():
        return best_run(folder / "run", folder / "shards", SIZE, data={"resize": 26})


@pytest.fixture(scope="module")
def embedder(run: Path) -> Embedder:
    return Embedder.from_run(run)


def split(run: Path) -> SplitReader:
    return open_shards(run.parent / "shards").split("train")


def files_of(run: Path, photos: Path) -> list[Path]:
    reader = split(run)
    return [photos / reader.path(row) for row in range(len(reader))]


def test_files_give_the_vectors_that_the_run_itself_has(run: Path, photos: Path, embedder: Embedder) -> None:
    with unchanged():
        config = config_of(run)
        with alone(config):
            found = load(run, config)
            options = parts.embed_options(config)
            expected = evaluate.embed_split(found.network, split(run), found.partition, options)["vectors"]
    vectors = embedder.transform(files_of(run, photos))
    assert vectors.dtype == np.float32 and vectors.shape == (len(expected), 6)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert embedder.num_dims == 6 and embedder.widths == (3, 3)


def test_paths_pictures_and_arrays_are_the_same_images(run: Path, photos: Path, embedder: Embedder) -> None:
    files = files_of(run, photos)[:5]
    expected = embedder.transform(files)
    arrays = [np.asarray(Image.open(file)) for file in files]
    mixed = [str(files[0]), Image.open(files[1]), arrays[2], np.dstack([arrays[3], arrays[3][..., :1]]), files[4]]
    for images in (np.array([str(file) for file in files]), arrays, np.stack(arrays), mixed):
        np.testing.assert_allclose(embedder.transform(images), expected, atol=1e-6)
    small = Embedder(run, batch_size=2).transform(iter(files))
    np.testing.assert_allclose(small, expected, atol=1e-6)
    assert embedder.transform([]).shape == (0, 6)


def test_gray_and_turned_pictures(embedder: Embedder, tmp_path: Path) -> None:
    gray = np.random.default_rng(1).integers(0, 256, (30, 40), dtype=np.uint8)
    colour = np.repeat(gray[..., None], 3, axis=2)
    found = embedder.transform([gray, gray[..., None], colour])
    np.testing.assert_allclose(found, found[[0, 0, 0]], atol=1e-6)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: shown turned by a quarter clockwise
    Image.fromarray(gray).save(tmp_path / "turned.png", exif=exif)
    upright = embedder.transform([np.rot90(gray, -1)])
    np.testing.assert_allclose(embedder.transform([tmp_path / "turned.png"]), upright, atol=1e-6)
    np.testing.assert_allclose(embedder.transform([Image.open(tmp_path / "turned.png")]), upright, atol=1e-6)


def test_an_exported_folder_does_without_run_and_shards(
    run: Path, photos: Path, embedder: Embedder, tmp_path: Path
) -> None:
    with unchanged():
        export_run(run, "huggingface", tmp_path / "taken")
    assert str(run.parent) not in (tmp_path / "taken" / "config.json").read_text()
    files = files_of(run, photos)[:4]
    found = Embedder.from_run(tmp_path / "taken").transform(files)
    np.testing.assert_allclose(found, embedder.transform(files), atol=1e-6)


def test_in_a_pipeline_of_scikit_learn(run: Path, photos: Path) -> None:
    files = files_of(run, photos)
    labels = [file.parent.name for file in files]
    pipeline: Pipeline = make_pipeline(Embedder(run), KNeighborsClassifier(1))
    assert clone(pipeline).fit(files, labels).score(files, labels) == 1.0
    own = Embedder.from_run(run).set_params(batch_size=3)
    assert clone(own).get_params() == {"run": run, "batch_size": 3, "device": None}
    named = own.set_output(transform="pandas").transform(files[:2])
    assert list(named.columns) == [f"embedder{i}" for i in range(6)]


def test_the_examples_of_the_readme(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    for block in blocks:
        exec(block, found)
    assert len(blocks) == 2
    assert found["vectors"].shape == (24, 6) and found["nearest"][0] == 0
    assert found["model"].score(found["files"], found["labels"]) == 1.0


def test_copies_for_other_processes_hold_no_weights(run: Path, photos: Path, embedder: Embedder) -> None:
    copied = pickle.dumps(embedder)
    assert len(copied) < 1000
    files = files_of(run, photos)[:2]
    np.testing.assert_allclose(pickle.loads(copied).transform(files), embedder.transform(files), atol=1e-6)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_mixin_order,
    ],
)
def test_checks_of_scikit_learn_that_need_no_table_of_numbers(check: object, run: Path) -> None:
    check("Embedder", Embedder(run))  # type: ignore[operator]


def test_the_process_is_left_as_it_was(run: Path) -> None:
    before, threads = dict(os.environ), torch.get_num_threads()
    Embedder.from_run(run)
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads
    assert not torch.distributed.is_initialized()


def test_what_is_no_image_is_named(run: Path, embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    array = np.zeros((8, 8), np.float32)
    for images, said in (
        ([tmp_path / "broken.png"], r"broken\.png: "),
        ([tmp_path / "none.png"], "none.png: cannot be read"),
        ([array], r"image 0 is an array \(8, 8\) of float32; give uint8"),
        ([array.astype(np.uint8), 3], "image 1 is a int"),
        ([np.zeros((8, 8, 2), np.uint8)], r"\(8, 8, 2\)"),
        ([np.zeros((0, 8), np.uint8)], "image 0: empty image"),
        (str(tmp_path / "broken.png"), "give a list"),
        (array[0, 0], "give a list"),
    ):
        with pytest.raises(UserError, match=said):
            embedder.transform(images)
    with pytest.raises(UserError, match="batch_size 0"):
        Embedder(run, batch_size=0).transform([])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        Embedder.from_run(tmp_path)
