"""A first look at images: which source, whose images, how large and of which colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import UserError
from data_shards.survey import source_of, survey


def save(path: Path, height: int = 20, width: int = 30, shade: int = 128, channels: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, channels), shade, dtype=np.uint8)
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path)
    return path


def test_sizes_colours_and_counts(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "few" / f"{number}.png", 10, 40, shade=0)
    for number in range(6):
        save(tmp_path / "many" / f"{number}.png", 20, 40, shade=255, channels=1)
    (tmp_path / "few" / "broken.png").write_bytes(b"no image")
    found = survey(tmp_path)
    assert found.source == f"folder:{tmp_path}"
    assert found.class_counts == {"many": 6, "few": 4}
    assert (found.looked_at, found.shorter_px, found.largest_px, found.channels) == (10, 20, 40, 3)
    assert found.elongation == 2.0
    assert found.mean == pytest.approx([6 / 9] * 3, abs=1e-3)
    assert found.std == pytest.approx([np.sqrt(6 / 9 - (6 / 9) ** 2)] * 3, abs=2e-3)
    assert len(found.unreadable) == 1 and found.unreadable[0].startswith("few/broken.png: ")


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ([f"P{patient:03}_{view}" for patient in range(8) for view in range(2)], {"group": "4"}),
        ([f"image_{number}" for number in range(16)], {}),  # one beginning for all
        ([f"{number:04}_x" for number in range(16)], {}),  # nobody has two images
        ([f"p{patient}_{view}" for patient in range(6, 14) for view in range(2)], {}),  # beginnings of unlike length
        ([f"p{patient}/{view}" for patient in range(8) for view in range(2)], {"group": "parent"}),
    ],
)
def test_patients_in_names_and_folders(tmp_path: Path, names: list[str], options: dict[str, str]) -> None:
    for i, name in enumerate(names):
        save(tmp_path / "ab"[i % 4 // 2] / f"{name}.png")
    found = survey(tmp_path)
    assert found.options == options
    if options:
        assert len({record.group for record in found.listing.records}) == 8


@pytest.mark.parametrize(
    ("column", "options"),
    [("lesion_id", {"group": "lesion_id"}), ("Patient", {"group": "Patient"}), ("age", {}), ("group", {})],
)
def test_patients_in_a_table(tmp_path: Path, column: str, options: dict[str, str]) -> None:
    rows = []
    for number in range(8):
        save(tmp_path / "images" / f"{number}.png")
        rows.append(f"images/{number}.png,{'ab'[number % 2]},{number // 4}")
    (tmp_path / "labels.csv").write_text(f"path,label,{column}\n" + "\n".join(rows) + "\n")
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    found = survey(tmp_path)
    assert found.source == f"table:{tmp_path / 'labels.csv'}"
    assert found.options == options
    assert survey(tmp_path / "labels.csv").class_counts == found.class_counts


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        source_of(tmp_path / "none")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,label\n")
    with pytest.raises(UserError, match=r"several tables of images \(a.csv, b.csv"):
        source_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="No images"):
        survey(tmp_path / "empty")
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"can be read; the first: a/x.png"):
        survey(tmp_path / "bad")
