"""Catalogues come back as they were written, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_shards.catalogue import Catalogue, read_catalogue, write_catalogue
from data_shards.errors import DataIntegrityError
from data_shards.reader import open_shards


def made(num: int = 5, num_dims: int = 3) -> Catalogue:
    rng = np.random.default_rng(0)
    texts = [np.array([f"{name}{i}" for i in range(num)], dtype=object) for name in ("c", "g", "p", "s")]
    vectors = rng.uniform(-0.5, 0.5, (num, num_dims)).astype(np.float32)
    return Catalogue(np.arange(num) * 7, np.arange(num, dtype=np.int32), *texts, vectors)


def test_it_comes_back(tmp_path: Path) -> None:
    images = made()
    write_catalogue(tmp_path / "a.arrow", images)
    again = read_catalogue(tmp_path / "a.arrow", 3)
    for field in fields(Catalogue):
        assert getattr(again, field.name).tolist() == getattr(images, field.name).tolist()
    table = pa.ipc.open_file(tmp_path / "a.arrow").read_all()
    assert table.column_names == ["sample_id", "label", "class", "group", "path", "split", "vector"]
    assert table["vector"].to_pylist() == images.vectors.tolist()


def test_splits_are_joined_and_found_by_id_and_group(digits: Path) -> None:
    folder = open_shards(digits)
    parts = []
    for name in ("train", "test"):
        reader = folder.split(name)
        parts.append(Catalogue.of_split(reader, np.zeros((len(reader), 2), np.float32)))
    images = Catalogue.joined(parts)
    assert len(images) == len(parts[0]) + len(parts[1])
    reader = folder.split("test")
    row = images.row_of[int(reader.sample_ids[4])]
    assert (images.splits[row], images.paths[row]) == ("test", reader.path(4))
    assert images.classes[row] == reader.classes[reader.labels[4]]
    grouped = replace(made(), groups=np.array(["a", "", "b", "a", ""], dtype=object))
    assert grouped.rows_of_group == {"a": [0, 3], "b": [2]}


def test_what_is_no_catalogue_is_refused(tmp_path: Path, digits: Path) -> None:
    path = tmp_path / "a.arrow"
    write_catalogue(path, made())
    with pytest.raises(DataIntegrityError, match="columns"):
        read_catalogue(path, 4)
    with pytest.raises(DataIntegrityError, match="columns"):
        read_catalogue(digits / "train-00000.arrow", 3)
    for name, wrong, words in (
        ("vectors", np.full((5, 3), np.nan, np.float32), "vectors"),
        ("vectors", np.full((5, 3), 1e30, np.float32), "vectors"),
        ("sample_ids", np.zeros(5, np.int64), "twice"),
    ):
        write_catalogue(path, replace(made(), **{name: wrong}))
        with pytest.raises(DataIntegrityError, match=words):
            read_catalogue(path, 3)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataIntegrityError):
        read_catalogue(path, 3)
