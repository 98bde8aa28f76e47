from __future__ import annotations

from pathlib import Path

import pytest

from data_shards.build import build
from data_shards.errors import UserError
from data_shards.sources.isic19 import CLASSES, COUNTS, read, split_of

HEADER = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


def publish(root: Path, images: list[tuple[str, str]], lesions: dict[str, str] | None = None) -> Path:
    """Write the publisher's two tables; `images` are (name, class)."""
    columns = [*CLASSES, "UNK"]
    rows = [f"{name}," + ",".join("1.0" if column == label else "0.0" for column in columns) for name, label in images]
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (root / "ISIC_2019_Training_Input").mkdir(exist_ok=True)
    if lesions is not None:
        rows = [f"{name},55.0,anterior torso,{lesions.get(name, '')},male" for name, _ in images]
        header = "image,age_approx,anatom_site_general,lesion_id,sex"
        (root / "ISIC_2019_Training_Metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def published_list() -> list[tuple[str, str]]:
    """Names with the published number of images of every class below and above the cut."""
    below = [label for label, (train, _) in COUNTS.items() for _ in range(train)]
    above = [label for label, (_, test) in COUNTS.items() for _ in range(test)]
    names = [f"ISIC_{i:07d}{'_downsampled' if i < 2000 else ''}" for i in range(len(below))]
    return [*zip(names, below, strict=True), *((f"ISIC_{64821 + i:07d}", label) for i, label in enumerate(above))]


def test_the_cut() -> None:
    assert split_of("ISIC_0000000") == split_of("ISIC_0000030_downsampled") == split_of("ISIC_0064820") == "train"
    assert split_of("ISIC_0064821") == split_of("ISIC_0073254") == "test"
    for name in ("ISIC_0073255", "ISIC_1", "ISIC_0000000.jpg", "../ISIC_0000000", "ISIC_0000000_x"):
        assert split_of(name) is None


def test_published_totals() -> None:
    assert sum(train for train, _ in COUNTS.values()) == 20_000
    assert sum(test for _, test in COUNTS.values()) == 5_331
    assert {label: sum(counts) for label, counts in COUNTS.items()}["NV"] == 12_875


def test_the_full_list_agrees_with_the_published_counts(tmp_path: Path) -> None:
    listing = read(publish(tmp_path, published_list(), lesions={}), validation=0, group="none")
    assert listing.warnings == ()
    counts = listing.counts()
    assert {name: (counts["train"][name], counts["test"][name]) for name in CLASSES} == COUNTS
    carved = read(tmp_path, group="none")
    assert carved.warnings == ()
    for name in CLASSES:
        validation = carved.counts()["validation"][name]
        assert validation == round(0.1 * COUNTS[name][0])
        assert carved.counts()["train"][name] == COUNTS[name][0] - validation


def test_a_miniature_builds_with_warnings(tmp_path: Path, write_image) -> None:
    images = [(f"ISIC_{i:07d}{'_downsampled' if i % 2 else ''}", "NV" if i % 3 else "MEL") for i in range(40)]
    images += [(f"ISIC_{64821 + i:07d}", "NV") for i in range(6)]
    extra = [("ISIC_0073255", "NV"), ("ISIC_0000900", "UNK")]
    lesions = {name: f"L{i // 2}" for i, (name, _) in enumerate(images)} | {images[40][0]: "L0"}
    root = publish(tmp_path / "isic" if (tmp_path / "isic").mkdir() is None else tmp_path, images + extra, lesions)
    for name, _ in images:
        write_image(root / "ISIC_2019_Training_Input" / "ISIC_2019_Training_Input" / f"{name}.jpg")
    manifest = build(f"isic19:{root}", tmp_path / "dest", size=16)
    assert manifest.classes == CLASSES
    assert manifest.rejected == 0
    assert manifest.num_rows("test") == 6
    assert manifest.num_rows("validation") > 0
    text = " ".join(manifest.warnings)
    assert "46 images found, the published list counts 25,331 (20,000 train, 5,331 test)" in text
    assert "MEL train 14 instead of 3,349" in text
    assert "2 rows outside the published list were left out, e.g. ISIC_0073255" in text
    assert "1 of 23 groups lie in more than one split: 'L0' (train, test); kept" in text


def test_lesions_are_not_torn_between_train_and_validation(tmp_path: Path) -> None:
    images = published_list()[:4000]
    listing = read(
        publish(tmp_path, images, {name: f"L{i // 3}" for i, (name, _) in enumerate(images)}), validation=0.2
    )
    splits: dict[str, set[str]] = {}
    for record in listing.records:
        splits.setdefault(record.group, set()).add(record.split)
    assert all(len(names) == 1 for names in splits.values())


def test_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GroundTruth\.csv does not exist"):
        read(tmp_path)
    publish(tmp_path, published_list()[:3])
    assert "No ISIC_2019_Training_Metadata.csv" in read(tmp_path).warnings[-1]
    (tmp_path / "ISIC_2019_Training_Input").rmdir()
    with pytest.raises(UserError, match="no folder ISIC_2019_Training_Input"):
        read(tmp_path)
