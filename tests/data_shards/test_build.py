from __future__ import annotations

import csv
import io
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from data_shards import staging
from data_shards.build import REJECTED_NAME, build, info, render_info
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.verify import verify


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_builds_are_byte_equal(tmp_path: Path, class_folder: Path) -> None:
    for name in ("one", "two"):
        build(f"folder:{class_folder}", tmp_path / name, size=8, num_workers=1 if name == "one" else 3)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    assert verify(tmp_path / "one") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "set", "two"]


def test_sizes_and_forms(tmp_path: Path, class_folder: Path) -> None:
    manifest = build(f"folder:{class_folder}", tmp_path / "a", size=8, fit="pad", options={"validation": 0})
    assert (manifest.stored, manifest.image_size, manifest.channels, manifest.fit) == ("raw", 8, 3, "pad")
    assert manifest.counts == {"train": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}
    assert build(f"folder:{class_folder}", tmp_path / "b").stored == "as-is"
    data = open_shards(tmp_path / "b").split("test")
    assert data.uniform_shape() == (12, 10, 3)


def test_gray_images_stay_gray_unless_told(tmp_path: Path, write_image) -> None:
    for number in range(6):
        write_image(tmp_path / "set" / "train" / "x" / f"{number}.png", mode="L")
    source = f"folder:{tmp_path / 'set'}"
    assert build(source, tmp_path / "gray", size=8).channels == 1
    assert build(source, tmp_path / "rgb", size=8, options={"channels": 3}).channels == 3
    rgb = open_shards(tmp_path / "rgb").split("train").images([0])
    assert np.array_equal(rgb[..., 0], rgb[..., 2])
    write_image(tmp_path / "set" / "train" / "x" / "colour.png")
    assert build(source, tmp_path / "mixed").channels == 3
    assert open_shards(tmp_path / "mixed").split("train").image(0).shape == (12, 10, 3)


def test_unusable_images_are_listed_with_a_reason(tmp_path: Path, class_folder: Path) -> None:
    train = class_folder / "train" / "a"
    (train / "0.png").write_bytes(b"not an image")
    (train / "1.png").write_bytes((train / "2.png").read_bytes()[:200])
    Image.new("L", (9000, 9000)).save(train / "4.png")
    Image.new("L", (4, 4)).save(train / "5.gif")
    (train / "6.png").symlink_to(Path(__file__).resolve())
    manifest = build(f"folder:{class_folder}", tmp_path / "dest", size=8, options={"validation": 0})
    with open(tmp_path / "dest" / REJECTED_NAME, newline="") as stream:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    assert {path: text.split(" ")[0] for path, text in reasons.items()} == {
        "train/a/0.png": "not",
        "train/a/1.png": "cannot",
        "train/a/4.png": "9000",
        "train/a/5.gif": "not",
        "train/a/6.png": "a",
    }
    assert manifest.rejected == 5
    assert manifest.counts["train"] == {"a": 2, "b": 4}
    assert "5 of 19 images were left out" in manifest.warnings[0]
    assert verify(tmp_path / "dest") == []
    with pytest.raises(UserError, match=r"4 image\(s\) cannot be used \(train/a/0.png: not a JPEG"):
        build(f"folder:{class_folder}", tmp_path / "strict", size=8, strict=True)
    (train / "0.png").unlink()
    for name in ("4.png", "5.gif", "6.png"):
        (train / name).unlink()
    with pytest.raises(UserError, match=r"1 image\(s\) cannot be used \(train/a/1.png: cannot be decoded"):
        build(f"folder:{class_folder}", tmp_path / "strict", size=8, strict=True)
    assert not (tmp_path / "strict").exists()


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"No image of 'set' can be used; the first: a/x\.png"):
        build(f"folder:{tmp_path / 'set'}", tmp_path / "dest")


def test_groups_across_splits_are_refused_by_name(tmp_path: Path, write_image) -> None:
    lines = ["path,label,split,group"]
    for number in range(20):
        write_image(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},{'train' if number < 12 else 'test'},patient{number % 10}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    source = f"table:{tmp_path / 'labels.csv'}"
    with pytest.raises(UserError, match=r"8 of 10 groups .*'patient2' \(train, test\), .*, \.\.\.\. .*group=none"):
        build(source, tmp_path / "dest", size=8, options={"validation": 0})
    assert not (tmp_path / "dest").exists()
    manifest = build(source, tmp_path / "dest", size=8, options={"validation": 0, "group": "none"})
    assert manifest.num_rows("test") == 8


def test_an_existing_destination_is_kept(tmp_path: Path, class_folder: Path) -> None:
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "precious").write_text("x")
    for dest in (tmp_path / "dest", class_folder / "train" / "a" / "0.png"):
        with pytest.raises(UserError, match="exists already"):
            build(f"folder:{class_folder}", dest)
    assert (tmp_path / "dest" / "precious").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stored": "jpg"}, r"--stored jpg is unknown \(did you mean 'jpeg'\?\)"),
        ({"fit": "zoom"}, "--fit zoom is unknown"),
        ({"size": 0}, "--size 0"),
        ({"size": 10**6}, "--size 1000000"),
        ({"size": 8, "stored": "as-is"}, "leave out --size"),
        ({"shard_mb": 0}, "--shard-mb 0"),
        ({"options": {"channels": 2}}, "channels 2"),
        ({"options": {"validaton": 0.1}}, r"no option 'validaton' \(did you mean 'validation'\?\)"),
        ({"options": {"validation": "much"}}, "validation=much is not a float"),
        ({"options": {"validation": 1}}, "fractions"),
    ],
)
def test_wrong_arguments(tmp_path: Path, class_folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(f"folder:{class_folder}", tmp_path / "dest", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, class_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")(100)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"needs about .* free some space"):
        build(f"folder:{class_folder}", tmp_path / "dest", size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_masks_follow_their_images(tmp_path: Path, write_image) -> None:
    lines = ["path,label,mask,split"]
    for number in range(4):
        write_image(tmp_path / f"{number}.png", 20, 30)
        Image.fromarray(np.full((20, 30 - (number == 3)), number, np.uint8)).save(tmp_path / f"m{number}.png")
        lines.append(f"{number}.png,x,{f'm{number}.png' if number else ''},test")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    manifest = build(f"table:{tmp_path / 'labels.csv'}", tmp_path / "dest", size=8)
    assert manifest.has_masks
    reader = open_shards(tmp_path / "dest").split("test")
    assert reader.mask(0) is None
    assert [np.unique(reader.mask(row)).tolist() for row in (1, 2)] == [[1], [2]]
    assert reader.mask(1).shape == (8, 8)
    assert "mask is 29 x 20, image 30 x 20" in (tmp_path / "dest" / REJECTED_NAME).read_text()


def test_info_is_json_and_a_table(tmp_path: Path) -> None:
    build("digits", tmp_path / "digits")
    content = info(tmp_path / "digits")
    assert content["num_images"] == {"train": 1079, "validation": 359, "test": 359}
    assert content["image_size"] == 32
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_info(content))
    text = console.export_text()
    assert "digits: 1,797 images, 10 classes, 32 px gray" in text
    assert "1,079" in text
