from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from data_shards.writer import Row, write_shard

ROWS = [Row(i, i % 2, "p" if i else "", f"img{i}.png", 1, 2, 3, bytes([i] * 6), factors={"f": i / 2}) for i in range(4)]


def test_columns_and_entry(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.arrow"
    entry = write_shard(path, "train", ROWS, ["f"])
    data = path.read_bytes()
    assert (entry.file, entry.split, entry.rows, entry.bytes) == (path.name, "train", 4, len(data))
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    assert table.column_names == [
        *("sample_id", "label", "group", "path", "height", "width", "channels", "image", "crc32", "mask", "factor_f"),
    ]
    assert table["crc32"].to_pylist() == [zlib.crc32(row.image) for row in ROWS]
    assert table["group"].to_pylist() == ["", "p", "p", "p"]
    assert table["factor_f"].to_pylist() == [0, 0.5, 1, 1.5]
    assert table["mask"].null_count == 4


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    entries = [write_shard(tmp_path / name, "train", ROWS, ["f"]) for name in ("a", "b")]
    assert entries[0].sha256 == entries[1].sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    before = write_shard(path, "train", ROWS, ["f"])
    with pytest.raises(KeyError):
        write_shard(path, "train", ROWS, ["absent"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before.sha256
