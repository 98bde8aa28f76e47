"""The index on the disk: committed whole, and nothing of it believed before it is compared with the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.errors import DataIntegrityError, UserError
from data_shards.manifest import canonical_json
from launch.retrieval import index_folder
from launch.retrieval.index_folder import commit, open_images, open_screen, read_manifest, writing
from launch.retrieval.indexing import make_index


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "ivf"
    make_index(run, None, ("train", "test"), "ivf", folder, tell=lambda line: None)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "index"))


def test_what_was_written_comes_back(folder: Path) -> None:
    manifest = read_manifest(folder)
    images = open_images(folder, manifest)
    assert (manifest.kind, manifest.splits, len(images)) == ("ivf", ["train", "test"], 72 + 24)
    assert len(open_screen(folder, manifest, images)) == 96
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "manifest.json", manifest.images.file, manifest.screen.file
    }  # fmt: skip


def test_a_second_index_takes_the_place_of_the_first(run: Path, folder: Path) -> None:
    before = read_manifest(folder)
    make_index(run, None, ("test",), "exact", folder, tell=lambda line: None)
    after = read_manifest(folder)
    assert after.splits == ["test"]
    assert {path.name for path in folder.iterdir()} == {".lock", "manifest.json", after.images.file}
    assert before.images.file != after.images.file


def test_a_writer_killed_before_the_commit_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_manifest(folder)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_folder, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        commit(folder, before.model_copy(update={"epoch": 99}))
    assert read_manifest(folder) == before
    assert len(open_images(folder, before)) == 96


def test_two_writers_exclude_each_other(folder: Path) -> None:
    with writing(folder), pytest.raises(UserError, match="another process"), writing(folder):
        pass


@pytest.mark.parametrize("which", ["images", "screen"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
        lambda data: b"",
    ],
)
def test_damaged_files_are_not_read(folder: Path, which: str, damage: Callable[[bytes], bytes]) -> None:
    manifest = read_manifest(folder)
    images = open_images(folder, manifest)
    path = folder / getattr(manifest, which).file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataIntegrityError, match=r"make the index again"):
        open_images(folder, manifest) if which == "images" else open_screen(folder, manifest, images)
    path.unlink()
    with pytest.raises(DataIntegrityError):
        open_images(folder, manifest) if which == "images" else open_screen(folder, manifest, images)


def test_damaged_manifests_are_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    for wrong in (text.replace('"epoch": 3', '"epoch": 4'), text[:-40], "[]", "{}", '{"sha256": 3}', "[" * 10_000):
        path.write_text(wrong)
        with pytest.raises(DataIntegrityError):
            read_manifest(folder)
    path.unlink()
    with pytest.raises(UserError, match="subspace index"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("images", {"file": "../../etc/passwd", "bytes": 3, "sha256": "0" * 64}), ("num_images", -1), ("widths", []),
     ("kind", "pickle"), ("unknown", 1), ("weights", 3)],
)  # fmt: skip
def test_a_forged_manifest_is_held_against_its_schema(folder: Path, name: str, value: object) -> None:
    body = json.loads((folder / "manifest.json").read_text())
    del body["sha256"]
    body[name] = value
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(DataIntegrityError, match=name):
        read_manifest(folder)
