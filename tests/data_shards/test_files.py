"""Durable small files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_shards.files import sha256_of, sync, write_text


def test_write_text_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    write_text(target, "new\nline ü")
    assert target.read_bytes() == "new\nline ü".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_shards.files.sync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_sha256_is_that_of_hashlib(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "x").write_bytes(content)
    sync(tmp_path / "x")
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()
