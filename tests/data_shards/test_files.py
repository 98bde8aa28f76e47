"""Durable small files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from data_shards.files import open_plain, sha256_of, sync, write_text


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


def test_open_plain_never_waits_and_follows_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with open_plain(tmp_path / "file", 5) as file:
        assert file.read() == b"12345"
    with open_plain(tmp_path / "link", 5, follow=True) as file:
        assert file.read() == b"12345"
    refused = {"file": "most that make sense", "link": "link", "pipe": "plain", ".": "plain", "/dev/zero": "plain",
               "a\0b": "null byte", "absent": "No such file"}  # fmt: skip
    for name, reason in refused.items():
        with pytest.raises(OSError) as refusal:
            open_plain(tmp_path / name, 4)
        assert reason in str(refusal.value.strerror)
