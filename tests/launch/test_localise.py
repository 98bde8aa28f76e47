"""`subspace localise`: whole paths on drawn fundus pictures, files and sample ids, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.build import build
from data_shards.reader import SplitReader, open_shards
from tests.launch.best_run import best_run

Cli = Callable[..., tuple[int, str, str]]
SIZE = 64
LOCAL = {
    "model": {
        "backbone": {"name": "vgg16", "norm": "group"},
        "gate": {"name": "none"},
        "head": {"name": "dense", "grid": 4, "width": 8, "num_clusters": 0},
        "num_subspaces": 1,
    },
    "objective": {"local": {}},
    "growth": {"enabled": False, "monitor": "loss"},
    "evaluate": {"by": "loss"},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "vessels"
    build("vessels", folder, size=SIZE, options={"num_samples": 15})
    return folder


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    return best_run(tmp_path / "run", shards, SIZE, **LOCAL)


def validation(shards: Path) -> SplitReader:
    return open_shards(shards).split("validation")


def test_landmarks_of_the_shards_are_searched_in_all_other_images(
    run: Path, shards: Path, cli: Cli, tmp_path: Path
) -> None:
    reader = validation(shards)
    support, *others = (str(value) for value in reader.sample_ids)
    code, out, err = cli("localise", run, support, "--out", tmp_path / "out", "--mm-per-pixel", "0.5")
    assert code == 0, err
    assert "landmark 1: median error" in out and " mm, " in out
    with (tmp_path / "out" / "landmarks.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["query"] for row in rows[::2]] == [f"validation {other}" for other in others]
    for row in rows:
        place = [float(row["x"]), float(row["y"])]
        at = reader.sample_ids.tolist().index(int(row["query"].split()[1]))
        true = [reader.factors[f"landmark{row['landmark']}_{axis}"][at] for axis in "xy"]
        assert np.hypot(*np.subtract(place, true)) == pytest.approx(float(row["error_px"]), abs=0.02)
        assert float(row["error_mm"]) == pytest.approx(0.5 * float(row["error_px"]), abs=0.001)
    scores = json.loads((tmp_path / "out" / "landmarks.json").read_text())
    own = [float(row["error_px"]) for row in rows if row["landmark"] == "1"]
    assert scores["landmarks"][1]["median_px"] == pytest.approx(np.median(own), abs=0.001)
    assert scores["landmarks"][1]["median_share_of_side"] == pytest.approx(np.median(own) / SIZE, abs=1e-4)
    with Image.open(tmp_path / "out" / "landmarks.png") as picture:
        assert picture.width > 400


def test_a_landmark_is_found_again_in_the_file_it_was_marked_in(
    run: Path, shards: Path, cli: Cli, tmp_path: Path
) -> None:
    """The file is larger than the shards' images and not square: places come back in its own pixels."""
    image = Image.fromarray(validation(shards).image(0)).resize((256, 256))
    wide = Image.new("RGB", (300, 256))
    wide.paste(image, (22, 0))
    wide.save(tmp_path / "eye.png")
    code, _, err = cli(
        "localise", run, tmp_path / "eye.png", tmp_path / "eye.png", "--at", "140,101", "--out", tmp_path / "out"
    )
    assert code == 0, err
    with (tmp_path / "out" / "landmarks.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert abs(float(row["x"]) - 140) <= 2 and abs(float(row["y"]) - 101) <= 2  # a pixel of 64 is four of 256
    assert float(row["likeness"]) == pytest.approx(1, abs=1e-4)
    assert row["error_px"] == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--at", "12"), "--at 12: write x,y"),
        (("--at", "500,3"), "outside of the 64 x 64"),
        (("--at", "nan,3"), "--at"),
    ],
)
def test_impossible_places_are_one_sentence(
    run: Path, shards: Path, cli: Cli, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    support = str(validation(shards).sample_ids[0])
    code, _, err = cli("localise", run, support, *words, "--out", tmp_path / "out")
    assert code == 2 and said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_network_without_pixels_and_a_file_without_a_mark_are_refused(
    run: Path, shards: Path, cli: Cli, tmp_path: Path
) -> None:
    plain = best_run(tmp_path / "plain", shards, SIZE)
    support = str(validation(shards).sample_ids[0])
    code, _, err = cli("localise", plain, support, "--out", tmp_path / "out")
    assert code == 2 and "model.head dense" in err.replace("model.head.name", "model.head")
    Image.fromarray(validation(shards).image(0)).save(tmp_path / "eye.png")
    code, _, err = cli("localise", run, tmp_path / "eye.png", "--out", tmp_path / "out")
    assert code == 2 and "--at: say where" in err
