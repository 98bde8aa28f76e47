from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from data_shards.errors import DataIntegrityError, UserError
from data_shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, from_json, read_manifest, to_json

ENTRY = ShardEntry("train-00000.arrow", "train", 3, 100, "0" * 64)
MANIFEST = Manifest(
    name="tiny",
    source="digits",
    stored="raw",
    image_size=8,
    channels=1,
    classes=("a", "b"),
    shards=(ENTRY,),
    counts={"train": {"a": 1, "b": 2}},
    warnings=("ä sentence",),
)


def resigned(**changes: object) -> str:
    """A manifest with changed fields and a valid sha256, as an attacker would write it."""
    content = json.loads(to_json(MANIFEST)) | changes
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"sha256": hashlib.sha256(text.encode()).hexdigest()})


def test_round_trip() -> None:
    assert from_json(to_json(MANIFEST)) == MANIFEST
    assert MANIFEST.splits == ("train",)
    assert MANIFEST.num_rows("test") == 0


def test_every_bit_flip_is_found() -> None:
    data = to_json(MANIFEST).encode()
    silent = []
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                if from_json(flipped.decode("ascii")) != MANIFEST:
                    silent.append((position, bit))
            except (UnicodeDecodeError, UserError):
                continue
    # what still parses is the same manifest: only white space between the fields was touched
    assert silent == []


@pytest.mark.parametrize(
    "file",
    ["../train-00000.arrow", "/tmp/train-00000.arrow", "train-0.arrow", "train-00000.arrow\n", "a/train-00000.arrow"],
)
def test_foreign_shard_names_are_refused(file: str) -> None:
    with pytest.raises(DataIntegrityError, match="form train-00000"):
        from_json(resigned(shards=[{**ENTRY.__dict__, "file": file}]))


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": [ENTRY.__dict__, ENTRY.__dict__]},
        {"shards": [{**ENTRY.__dict__, "split": "test"}]},
        {"shards": [{**ENTRY.__dict__, "rows": 4}]},
        {"shards": 7},
        {"counts": {}},
        {"stored": "pickle"},
        {"channels": 4},
        {"factors": ["x; y"]},
        {"surprise": 1},
    ],
)
def test_what_a_builder_never_writes_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DataIntegrityError, match=r"not a valid manifest|sha256"):
        from_json(resigned(**changes))


def test_another_schema_version_is_a_user_error() -> None:
    with pytest.raises(UserError, match="schema version 2"):
        from_json(resigned(schema_version=2))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"sha256": 3}', "[" * 5000])
def test_not_a_manifest(text: str) -> None:
    with pytest.raises(DataIntegrityError):
        from_json(text)


def test_a_linked_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text(to_json(replace(MANIFEST)))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / MANIFEST_NAME).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(DataIntegrityError, match="link"):
        read_manifest(folder)


def test_missing_folder_and_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(DataIntegrityError, match="is missing"):
        read_manifest(tmp_path)
