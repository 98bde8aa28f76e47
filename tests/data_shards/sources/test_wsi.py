"""Whole-slide images: pyramidal TIFF and SVS files made here, read by OpenSlide, cut at a physical size."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from data_shards.build import REJECTED_NAME, build
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources import read_source
from data_shards.sources.wsi import read

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

GLASS, PINK, PURPLE = (244, 243, 245), (220, 150, 190), (120, 70, 150)
HEIGHT, WIDTH = 512, 768


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return grey glass with noise, dust, and stained tissue over rows 128-384 and columns 256-640."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), GLASS, dtype=np.int64)
    image[20:40, 20:200] = 90  # dust: dark, without colour
    image[128:384, 256:640] = np.where(rng.random((256, 384, 1)) < 0.3, PURPLE, PINK)
    return np.clip(image + rng.integers(-3, 4, (height, width, 1)), 0, 255).astype(np.uint8)


def write_slide(
    path: Path, image: np.ndarray, mpp: float | None = 0.5, kind: str = "aperio", levels: int = 3, **how: object
) -> Path:
    """Write a tiled pyramid of halved levels, its resolution as Aperio or as plain TIFF states it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words: dict[str, object] = {"tile": (128, 128), "photometric": "rgb", "metadata": None, **how}
    if kind == "aperio":
        height, width = image.shape[:2]
        stated = "" if mpp is None else f"|MPP = {mpp}"
        words["description"] = f"Aperio Image Library v11.2.1\r\n{width}x{height} (128x128)|AppMag = 20{stated}"
    elif mpp is not None:
        words |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            file.write(image, subfiletype=int(level > 0), **words)
            image = image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 3).mean((1, 3)).round().astype("u1")
    return path


def slides(root: Path, **how: object) -> Path:
    """Write root/a and root/b with five slides each."""
    for number in range(10):
        write_slide(root / "ab"[number % 2] / f"{number}.svs", picture(number), **how)
    return root


def places(listing: object, slide: str) -> list[tuple[int, int]]:
    found = [r.path.partition("#x=")[2].split(",y=") for r in listing.records if r.path.startswith(f"{slide}#")]
    return [(int(x), int(y)) for x, y in found]


def reasons(dest: Path) -> dict[str, str]:
    with open(dest / REJECTED_NAME, newline="") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


@pytest.mark.parametrize(("kind", "suffix"), [("aperio", "svs"), ("plain", "tif")])
def test_patches_lie_where_the_stain_is(tmp_path: Path, kind: str, suffix: str) -> None:
    write_slide(tmp_path / "a" / f"1.{suffix}", picture(), 0.5, kind)
    wanted = [(x, y) for y in range(128, 384, 64) for x in range(256, 640, 64)]
    assert places(read(tmp_path, microns=32, pixels=64), f"a/1.{suffix}") == wanted
    loose = places(read(tmp_path, microns=64, pixels=64, tissue=0.5), f"a/1.{suffix}")
    assert loose == [(x, y) for y in (128, 256) for x in (256, 384, 512)]
    assert len(places(read(tmp_path, microns=32, tissue=0.0), f"a/1.{suffix}")) == (HEIGHT // 64) * (WIDTH // 64)


def test_pixels_are_those_of_the_slide_at_the_size_wanted(tmp_path: Path) -> None:
    image = picture()
    write_slide(tmp_path / "set" / "a" / "1.svs", image)
    options = {"microns": 32, "validation": 0, "test": 0}
    for size, factor in ((64, 1), (32, 2), (16, 4)):
        dest = tmp_path / str(size)
        manifest = build(f"wsi:{tmp_path / 'set'}", dest, size=size, options=options)
        assert (manifest.image_size, manifest.channels, manifest.rejected) == (size, 3, 0)
        reader = open_shards(dest).split("train")
        for row in range(len(reader)):
            x, y = (int(part) for part in reader.path(row).partition("#x=")[2].split(",y="))
            crop = image[y : y + 64, x : x + 64].reshape(size, factor, size, factor, 3).mean((1, 3))
            assert np.abs(reader.image(row) - crop).max() <= factor - 1  # rounded once per level


def test_slides_of_different_resolution_show_the_same_extent(tmp_path: Path) -> None:
    coarse = picture().reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)
    write_slide(tmp_path / "a" / "fine.svs", picture(), 0.25)
    write_slide(tmp_path / "a" / "coarse.svs", coarse, 0.5)
    listing = read(tmp_path, microns=16, pixels=32, tissue=0.9, validation=0, test=0)
    fine, halved = places(listing, "a/fine.svs"), places(listing, "a/coarse.svs")
    assert [(x // 2, y // 2) for x, y in fine] == halved and len(fine) == 24
    images = {r.path: r.load(3).astype(int) for r in listing.records}
    for (x, y), (u, v) in zip(fine, halved, strict=True):
        gap = images[f"a/fine.svs#x={x},y={y}"] - images[f"a/coarse.svs#x={u},y={v}"]
        assert np.abs(gap).max() <= 1


def test_a_level_is_chosen_that_is_just_finer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openslide

    write_slide(tmp_path / "a" / "1.svs", picture())
    asked, region = [], openslide.OpenSlide.read_region

    def recording(self: object, place: tuple[int, int], level: int, size: tuple[int, int]) -> object:
        asked.append((level, size))
        return region(self, place, level, size)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", recording)
    for pixels, expected in ((16, (2, (16, 16))), (31, (1, (32, 32))), (33, (0, (64, 64))), (100, (0, (64, 64)))):
        listing = read(tmp_path, microns=32, pixels=pixels, validation=0, test=0)
        assert listing.records[0].load(3).shape == (pixels, pixels, 3)
        assert asked.pop() == expected
        assert any("too coarse" in text for text in listing.warnings) == (pixels == 100)


def test_transparent_pixels_are_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openslide
    from PIL import Image

    write_slide(tmp_path / "a" / "1.svs", picture())
    record = read(tmp_path, microns=32, pixels=64, validation=0, test=0).records[0]

    def half(self: object, place: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        pixels = np.zeros((size[1], size[0], 4), np.uint8)
        pixels[:, size[0] // 2 :] = (10, 200, 30, 255)
        return Image.fromarray(pixels)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", half)
    image = record.load(3)
    assert (image[:, :30] == 255).all() and (image[:, 34:] == (10, 200, 30)).all()


@pytest.mark.parametrize("shade", [255, 235, 0])
def test_slides_without_tissue_are_left_out_and_told(tmp_path: Path, shade: int) -> None:
    noise = np.random.default_rng(0).integers(-4, 5, (HEIGHT, WIDTH, 3))
    write_slide(tmp_path / "a" / "empty.svs", np.clip(noise + shade, 0, 255).astype(np.uint8))
    with pytest.raises(UserError, match=r"No slide of .* has a patch of 32 microns that is 50% tissue"):
        read(tmp_path, microns=32)
    write_slide(tmp_path / "a" / "full.svs", picture())
    listing = read(tmp_path, microns=32)
    assert listing.warnings[0] == "1 slide(s) were left out, without a patch that is 50% tissue: a/empty.svs."


def test_no_slide_is_torn_by_a_drawn_split(tmp_path: Path) -> None:
    listing = read(slides(tmp_path, levels=1), microns=32, pixels=16)
    splits = {record.group: record.split for record in listing.records}
    assert set(splits) == {f"{'ab'[i % 2]}/{i}.svs" for i in range(10)}
    assert {(record.group, record.split) for record in listing.records} == set(splits.items())
    assert set(splits.values()) == {"train", "validation", "test"}


TABLE = """file,label,patient,split,mpp,skip
x/1.svs,u,p1,train,,
x/2.tif,u,p2,test,0.25,no
x/3.svs,v,,train,,
x/4.svs,v,p3,test,,blurred
"""


def table(root: Path, text: str = TABLE) -> Path:
    for number, suffix in enumerate(("svs", "tif", "svs", "svs"), start=1):
        if not (root / "x" / f"{number}.{suffix}").exists():
            write_slide(root / "x" / f"{number}.{suffix}", picture(number), None if suffix == "tif" else 0.5, "aperio")
    (root / "slides.csv").write_text(text)
    return root / "slides.csv"


def test_a_table(tmp_path: Path) -> None:
    manifest = build(
        f"wsi:{table(tmp_path)}", tmp_path / "dest", options={"microns": 64, "validation": 0, "pixels": 32}
    )
    assert (manifest.image_size, manifest.classes) == (32, ("u", "v"))
    assert "1 slide(s) were left out, marked in the column skip: x/4.svs." in manifest.warnings
    train, test = (open_shards(tmp_path / "dest").split(name) for name in ("train", "test"))
    assert set(train.groups) == {"p1", "x/3.svs"} and set(test.groups) == {"p2"}
    assert test.path(0) == "x/2.tif#x=256,y=0"  # 256 pixels of 0.25 microns; the edge of the tissue is half in it


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file,patient\nx/1.svs,p\n", r"lacks the column\(s\) label"),
        ("file,label\nx/1.svs,\n", "line 2: the label is empty"),
        ("file,label\nx/1.svs,a\nx/1.svs,b\n", "line 3: the slide x/1.svs is listed twice"),
        ("file,label\n../x/1.svs,a\n", "must be relative"),
        ("file,label,split\nx/1.svs,a,tran\n", r"'tran' is not a split \(did you mean 'train'\?\)"),
        ("file,label,mpp\nx/1.svs,a,half\n", "line 2: mpp 'half' is not a number"),
        ("file,label,mpp\nx/1.svs,a,nan\n", "line 2: mpp nan is not a resolution"),
        ("file,label,mpp\nx/1.svs,a,250\n", "line 2: mpp 250 is not a resolution of a slide; use microns per pixel"),
    ],
)
def test_wrong_tables(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(table(tmp_path, rows))


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label,patient,split\nx/1.svs,u,p,train\nx/3.svs,u,p,test\n")
    with pytest.raises(UserError, match="1 of 1 groups lie in more than one split: 'p'"):
        build(f"wsi:{path}", tmp_path / "dest", options={"microns": 64})


@pytest.mark.parametrize(("stated", "says"), [(None, "does not state its"), (352.8, "states '352.8")])
def test_unknown_resolution_is_one_sentence_with_the_way_out(tmp_path: Path, stated: float | None, says: str) -> None:
    write_slide(tmp_path / "set" / "a" / "1.tif", picture(), stated, "plain")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "set", microns=32)
    assert str(caught.value).startswith(f"The slide a/1.tif {says}")
    assert "column mpp of a table, or mpp=0.5" in str(caught.value)
    listing = read_source(f"wsi:{tmp_path / 'set'}", {"microns": "32", "mpp": "0.5"}, size=32)
    assert len(listing.records) == 24 and listing.default_size == 32


def test_the_table_knows_better_than_the_option_and_that_than_the_slide(tmp_path: Path) -> None:
    text = "file,label,mpp\nx/1.svs,u,1.0\nx/3.svs,u,\n"
    listing = read(table(tmp_path, text), microns=64, mpp=0.25, pixels=16, tissue=0.0)
    assert places(listing, "x/1.svs")[:2] == [(0, 0), (64, 0)]
    assert places(listing, "x/3.svs")[:2] == [(0, 0), (256, 0)]


def test_a_skip_list(tmp_path: Path) -> None:
    root, names = slides(tmp_path / "set", levels=1), tmp_path / "skip.txt"
    names.write_text("# out of focus\na/0.svs\n\n  b/3.svs  \na/0.svs\n")
    options = {"microns": 64, "skip": str(names)}
    manifest = build(f"wsi:{root}", tmp_path / "dest", size=16, options=options)
    assert "2 slide(s) were left out, named in skip.txt: a/0.svs, b/3.svs." in manifest.warnings
    folder = open_shards(tmp_path / "dest")
    groups = {group for split in folder.manifest.splits for group in folder.split(split).groups}
    assert len(groups) == 8 and not groups & {"a/0.svs", "b/3.svs"}
    for text, message in (("a/O.svs", r"names 'a/O.svs', which is no slide here \(did you mean"), ("\xff", "utf-8")):
        names.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=message):
            read(root, skip=str(names))
    with pytest.raises(UserError, match=r"absent.txt cannot be read: No such file"):
        read(root, skip=str(tmp_path / "absent.txt"))


def test_slides_that_cannot_be_read_are_rejected_by_name(tmp_path: Path) -> None:
    root = slides(tmp_path / "set", levels=1)
    (root / "a" / "0.svs").write_bytes(b"")
    (root / "a" / "2.svs").write_text("hello")
    data = (root / "a" / "4.svs").read_bytes()
    (root / "a" / "4.svs").write_bytes(data[: len(data) // 3])
    (root / "a" / "6.svs").unlink()
    write_slide(tmp_path / "outside.svs", picture())
    (root / "a" / "6.svs").symlink_to(tmp_path / "outside.svs")
    (root / "a" / "8.svs").unlink()
    os.mkfifo(root / "a" / "8.svs")
    build(f"wsi:{root}", tmp_path / "dest", size=16, options={"microns": 64})
    found = reasons(tmp_path / "dest")
    assert {name: text for name, text in found.items() if not text.startswith("cannot be")} == {
        "a/6.svs": "a link leads out of the source folder"
    }
    assert "not a plain file" in found["a/8.svs"] and set(found) == {f"a/{i}.svs" for i in (0, 2, 4, 6, 8)}
    assert not any(str(tmp_path) in text for text in found.values())
    with pytest.raises(UserError, match=r"5 image\(s\) cannot be used"):
        build(f"wsi:{root}", tmp_path / "strict", size=16, strict=True, options={"microns": 64})


def test_a_damaged_tile_costs_its_patches_only(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "set" / "a" / "1.svs", picture(), levels=2, compression="zlib")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        start, length = page.dataoffsets[9], page.databytecounts[9]  # rows 128-256, columns 384-512
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(b"\xff" * length)
    options = {"microns": 32, "validation": 0, "test": 0}
    manifest = build(f"wsi:{tmp_path / 'set'}", tmp_path / "dest", size=64, options=options)
    assert manifest.num_rows("train") == 20
    assert set(reasons(tmp_path / "dest")) == {f"a/1.svs#x={x},y={y}" for x in (384, 448) for y in (128, 192)}


def test_too_many_patches(tmp_path: Path) -> None:
    write_slide(tmp_path / "set" / "a" / "1.svs", picture(), 20.0)
    write_slide(tmp_path / "set" / "a" / "2.svs", picture(), 0.5)
    listing = read(tmp_path / "set", microns=20, pixels=16, tissue=0.0)
    assert len(places(listing, "a/1.svs")) == 0  # 768 x 512 patches of one pixel
    with pytest.raises(UserError, match=r"768 x 512 patches are above the limit of 262,144"):
        build(f"wsi:{tmp_path / 'set'}", tmp_path / "dest", size=16, strict=True, options={"microns": 20})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"microns": 0}, "microns=0 is out of range"),
        ({"microns": "nan"}, "microns=nan is out of range"),
        ({"pixels": 8}, "patches of 8 pixels"),
        ({"tissue": -0.1}, "tissue=-0.1 is not a fraction"),
        ({"mpp": 0}, "mpp=0.0 is not a resolution"),
        ({"mpp": -1}, "mpp=-1.0 is not a resolution"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    write_slide(tmp_path / "a" / "1.svs", picture(), levels=1)
    with pytest.raises(UserError, match=message):
        read_source(f"wsi:{tmp_path}", options)


def test_without_openslide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(UserError, match=r"pip install 'subspace-trainer\[wsi\]'"):
        read(tmp_path)
