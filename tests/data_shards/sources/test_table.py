from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import uniform_filter

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.reader import open_shards
from data_shards.sources.table import read
from data_shards.verify import verify

REAL = os.environ.get("SUBSPACE_DATA")


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


def test_columns_in_any_order_with_extras(tmp_path: Path) -> None:
    text = "\ufeffgroup, split,age,label,path,mask\np1,train,3,b,x/1.png,m/1.png\np2,VAL,4,a,2.png,\n"
    listing = read(table(tmp_path, text))
    first, second = listing.records
    assert (first.path, first.label, first.split, first.group) == ("x/1.png", "b", "train", "p1")
    assert (first.file, first.mask_file) == (tmp_path / "x/1.png", tmp_path / "m/1.png")
    assert (second.split, second.mask_file) == ("validation", None)
    assert listing.classes == ("a", "b")


def test_group_column_by_name_or_none(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,split,group,drawer\n1.png,a,train,g,d\n2.png,a,val,h,e\n")
    assert [record.group for record in read(path, group="drawer").records] == ["d", "e"]
    assert [record.group for record in read(path, group="none").records] == ["", ""]
    with pytest.raises(UserError, match=r"no column 'drawr' \(did you mean 'drawer'\?\)"):
        read(path, group="drawr")


def test_whole_classes_for_the_test_split(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,{kind},{split}\n" for n, (kind, split) in enumerate(ALPHABETS))
    path = table(tmp_path, f"path,label,split\n{rows}")
    splits = [record.split for record in read(path, test_classes="B/*, C/2").records]
    assert splits == ["train", "train", "test", "test", "validation", "test"]
    with pytest.raises(UserError, match=r"no class is called D/\*"):
        read(path, test_classes="D/*")


ALPHABETS = [("A/1", "train"), ("A/2", "train"), ("B/1", "train"), ("B/2", "val"), ("C/1", "val"), ("C/2", "val")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"lacks the column\(s\) path, label; it has: none"),
        ("file,label\na,b\n", r"lacks the column\(s\) path; it has: file, label"),
        ("path,label\n", "no rows"),
        ("path,label\nx.png,\n", "line 2: the label is empty"),
        ("path,label\n,a\n", "line 2: the path"),
        ("path,label\nx.png,a\nx.png,b\n", "line 3: the path x.png is listed twice"),
        ("path,label,split\nx.png,a,tran\n", r"'tran' is not a split \(did you mean 'train'\?\)"),
        ('path,label\n"x.png,a\n', "not a readable CSV"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(table(tmp_path, text))


@pytest.mark.parametrize(
    "name", ["../x.png", "/etc/passwd", "a/../../x.png", "C:\\x.png", "\\\\host\\x.png", "a" * 5000]
)
@pytest.mark.parametrize("column", ["path", "mask"])
def test_paths_that_leave_the_folder(tmp_path: Path, name: str, column: str) -> None:
    cells = {"path": "x.png", "mask": "m.png", column: name}
    with pytest.raises(UserError, match="must be relative"):
        read(table(tmp_path, f"path,label,mask\n{cells['path']},a,{cells['mask']}\n"))


def test_a_linked_folder_that_leads_out_is_rejected(tmp_path: Path, write_image) -> None:
    write_image(tmp_path / "outside" / "x.png")
    inside = tmp_path / "inside"
    write_image(inside / "y.png")
    (inside / "door").symlink_to(tmp_path / "outside")
    path = table(inside, "path,label,split\ndoor/x.png,a,train\ny.png,a,train\n")
    assert build(f"table:{path}", tmp_path / "dest").rejected == 1


def test_not_utf8_and_absent(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(UserError, match="UTF-8"):
        read(tmp_path / "t.csv")
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "absent.csv")


def test_the_first_rows_are_validation(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,split\n" + "".join(f"{n}.png,a,train\n" for n in range(39, 19, -1)))
    records = read(path, validation=0.2, draw="first").records
    assert [r.path for r in records if r.split == "validation"] == ["39.png", "38.png", "37.png", "36.png"]


def test_masks_of_shades_are_cut_after_scaling(tmp_path: Path) -> None:
    """A cell as labellers draw it: 128 is cytoplasm, 255 the nucleus; lines of one pixel survive scaling."""
    mask = np.zeros((48, 48), np.uint8)
    mask[8:40, 8:40], mask[16:32, 16:32], mask[44] = 128, 255, 255
    for split in ("train", "validation", "test"):
        Image.fromarray(mask).save(tmp_path / f"{split}.png")
    text = "path,label,split,mask\n" + "".join(f"{s}.png,a,{s},{s}.png\n" for s in ("train", "validation", "test"))
    path = table(tmp_path, text)
    areas = {}
    for name, options in (("any", {}), ("nucleus", {"mask_above": 0.6}), ("lines", {"mask_above": 0.3})):
        build(f"table:{path}", tmp_path / name, size=24, options=options)
        found = open_shards(tmp_path / name).split("test").mask(0)
        areas[name] = [int((found[4:20, 4:20] > 0).sum()), int((found[21:] > 0).sum())]
        assert name == "any" or set(np.unique(found)) == {0, 255}
    assert areas["any"][0] == 16 * 16
    assert areas["nucleus"] == [8 * 8, 0]
    assert areas["lines"] == [16 * 16, 24]


def test_a_share_that_is_none() -> None:
    with pytest.raises(UserError, match=r"mask_above=1\.5"):
        read(Path("labels.csv"), mask_above=1.5)


@pytest.mark.skipif(REAL is None, reason="SUBSPACE_DATA names no folder with real sets")
def test_real_sets(tmp_path: Path) -> None:
    cells = f"table:{REAL}/wbc_seg/labels.csv"
    manifest = build(cells, tmp_path / "cells", size=48, options={"group": "none"})
    assert (manifest.rejected, manifest.has_masks, sum(manifest.num_rows(s) for s in manifest.splits)) == (0, True, 300)
    assert open_shards(tmp_path / "cells").split("train").mask(0).shape == (48, 48)
    drawings = f"table:{REAL}/omniglot/labels.csv"
    with pytest.raises(UserError, match="20 of 20 groups"):
        build(drawings, tmp_path / "drawings", size=28)
    manifest = build(drawings, tmp_path / "drawings", size=28, options={"group": "none"})
    assert manifest.channels == 1
    assert sum(manifest.num_rows(split) for split in manifest.splits) == 19280
    assert verify(tmp_path / "drawings") == []


@pytest.mark.skipif(REAL is None, reason="SUBSPACE_DATA names no folder with real sets")
def test_real_vessels_with_the_published_validation(tmp_path: Path) -> None:
    options = {"validation": 0.2, "draw": "first"}
    manifest = build(f"table:{REAL}/drive/labels.csv", tmp_path / "dest", size=128, fit="stretch", options=options)
    assert {split: manifest.num_rows(split) for split in manifest.splits} == {"train": 16, "validation": 4}
    assert (manifest.rejected, manifest.has_masks, manifest.channels) == (0, True, 3)
    validation = open_shards(tmp_path / "dest").split("validation")
    assert [validation.path(row) for row in range(4)] == [f"images/{n}.png" for n in (21, 22, 23, 24)]
    for row in range(4):
        green, mask = validation.image(row)[..., 1].astype(float), validation.mask(row) > 0
        assert 0.05 < mask.mean() < 0.15
        assert (green - uniform_filter(green, 11))[mask].mean() < -3  # vessels are darker than what is around them
