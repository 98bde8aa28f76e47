"""`subspace init`: what it decides of which images, and that `subspace train --dry-run` takes what it writes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import UserError
from data_shards.survey import survey
from launch.config import load_config
from launch.starter import decide, init

Cli = Callable[..., tuple[int, str, str]]


def photos(folder: Path, counts: dict[str, int], height: int = 40, width: int = 40, channels: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name, number in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
            Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / name / f"{i}.png")
    return folder


def decided(folder: Path) -> dict[str, object]:
    start = decide(survey(folder), folder)
    return {f"{choice.section}.{choice.key}".lstrip("."): choice.value for choice in start.choices}


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_the_commands_that_are_printed_work(
    kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = photos(tmp_path / "my photos", {"a": 24, "b": 20, "it's": 16})
    if kind == "table":
        lines = [
            f"{path.relative_to(folder).as_posix()},{path.parent.name},p{i // 3}"
            for i, path in enumerate(sorted(folder.rglob("*.png")))
        ]
        (folder / "labels.csv").write_text("path,label,patient_id\n" + "\n".join(lines) + "\n")
    code, out, err = cli("init", folder, "-o", "mine.yaml")
    assert code == 0, err
    assert "60 images in 3 classes" in out and "data.image_size = 32" in out
    text = Path("mine.yaml").read_text()
    build, dry, train = (line.strip() for line in out.splitlines()[-3:])
    assert build in text and ("group=patient_id" in build) == (kind == "table")
    assert cli(*shlex.split(build)[1:])[0] == 0
    assert (dry, train) == ("subspace train mine.yaml --dry-run", "subspace train mine.yaml")
    assert cli(*shlex.split(dry)[1:]) == (0, "", "")
    config = load_config(Path("mine.yaml"))
    assert config.evaluate.exclude == ("group" if kind == "table" else "none")
    assert len(text.splitlines()) > 20 and "# norm" not in text


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"height": 16, "width": 16, "channels": 1}, {"data.image_size": 16, "data.channels": 1}),
        ({"height": 70, "width": 70}, {"data.image_size": 64}),
        ({"height": 256, "width": 300}, {"data.image_size": 224}),
    ],
)
def test_sizes(tmp_path: Path, images: dict[str, int], expected: dict[str, object]) -> None:
    found = decided(photos(tmp_path / "x", {"a": 20, "b": 20}, **images))
    assert {name: found[name] for name in expected} == expected
    assert (found["model.backbone"]["name"] == "small_resnet") == (images["height"] < 64)  # type: ignore[index]
    assert found["data.augment"]["hflip"] == ("channels" not in images)  # type: ignore[index]


def test_unlike_classes_are_watched_by_class(tmp_path: Path) -> None:
    assert decided(photos(tmp_path / "x", {"a": 60, "b": 10}))["growth.monitor"] == "macro_recall_at_1"
    assert decided(photos(tmp_path / "y", {"a": 40, "b": 20}))["growth.monitor"] == "recall_at_1"


def test_small_classes_get_fewer_images_in_a_batch(tmp_path: Path) -> None:
    assert decided(photos(tmp_path / "x", dict.fromkeys("abcdef", 9)))["train.samples_per_class"] == 4


def test_few_images_get_larger_splits_and_long_ones_are_padded(tmp_path: Path) -> None:
    folder = photos(tmp_path / "x", {"a": 8, "b": 8}, height=20, width=60)
    command = decide(survey(folder), folder).shards_command
    assert command.endswith("--size 20 --fit pad validation=0.2 test=0.2")


def test_what_cannot_be_begun_with_is_said(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "there.yaml").touch()
    folder = photos(tmp_path / "x", {"a": 2, "b": 2})
    for counts, out, said in (
        ({"a": 30}, "new.yaml", "all images are of one class, a"),
        ({"a": 2, "b": 2}, "new.yaml", "4 images in 2 classes are too few"),
        ({"a": 2, "b": 2}, "there.yaml", "exists already"),
    ):
        folder = photos(tmp_path / f"{len(list(tmp_path.iterdir()))}", counts)
        with pytest.raises(UserError, match=said):
            init(folder, tmp_path / out)
    code, _, err = cli("init", tmp_path / "none")
    assert code == 2 and "does not exist" in err
    assert not (tmp_path / "new.yaml").exists()
