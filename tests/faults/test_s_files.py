"""S7, S10, S14: pickles, links and control characters in place of everything that is read."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.errors import DataIntegrityError, UserError
from data_shards.reader import open_shards
from launch.config import load_config
from launch.record import PrintableLines
from launch.report.collect import read_run
from launch.report.gallery import Gallery
from launch.report.page import render
from launch.status import read_status, write_status
from launch.sweep import points
from tests.conftest import Answer
from tests.faults.conftest import Recorder
from tests.faults.sound_run import CHECKPOINT, READERS, forged, parsed, read_checkpoint, sound_run
from trainer.checkpoint import CheckpointStore
from trainer.tensor_file import read_weights


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sound") / "run"
    sound_run(run)
    return run


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


def bombs(marker: Path) -> list[bytes]:
    """Return pickles of every kind: plain, as torch writes them, in numpy's format."""
    zipped, legacy, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"a": Bomb(marker)}, zipped)
    torch.save({"a": Bomb(marker)}, legacy, _use_new_zipfile_serialization=False)
    np.save(array, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    plain = [pickle.dumps(Bomb(marker), protocol) for protocol in (0, 2, 5)]
    return [*plain, zipped.getvalue(), legacy.getvalue(), array.getvalue()]


def test_s7_pickles_in_place_of_every_file(sound: Path, digits: Path, tmp_path: Path, record: Recorder) -> None:
    marker, tried, refused = tmp_path / "it ran", [], 0
    readers: dict[str, Callable[[Path], Any]] = {
        file: reader for reader, files in READERS.values() for file in files if reader is not read_checkpoint
    }
    readers |= {str(path.relative_to(sound)): read_checkpoint for path in (sound / CHECKPOINT).iterdir()}
    readers |= {"evaluation/validation.safetensors": read_run, "w.pth": lambda run: read_weights(run / "w.pth")}
    readers |= {"w.safetensors": lambda run: read_weights(run / "w.safetensors")}
    readers |= {f"shards/{path.name}": lambda run: open_shards(run / "shards") for path in digits.iterdir()}
    for bomb in bombs(marker):
        for file, reader in readers.items():
            run = tmp_path / "run"
            shutil.copytree(sound, run)
            shutil.copytree(digits, run / "shards")
            (run / file).unlink(missing_ok=True)
            (run / file).write_bytes(bomb)
            try:
                reader(run)
            except UserError as error:
                refused += 1
                assert str(error).isprintable()
            assert not marker.exists(), file
            tried.append(file)
            shutil.rmtree(run)
    pickle.loads(bombs(marker)[2])
    assert marker.exists()  # what would have happened
    figures = {"files": len(set(tried)), "tries": len(tried), "refused": refused, "executed": 0}
    record("S7", "pickles in place of every file that is read", **figures)


# ---- S10 -----------------------------------------------------------------------------------------------------------


def test_s10_names_that_lead_elsewhere(tmp_path: Path, record: Recorder) -> None:
    names = ("../x", "/tmp/x", "a/b", "..", ".", "~", ".hidden", "-rf", "a\\b", "a\nb", "a\0b", "", "x" * 300)
    (tmp_path / "c.yaml").write_text("data: {shards: x}")
    for name in names:
        with pytest.raises(UserError, match="name"):
            load_config(tmp_path / "c.yaml", [f'name="{name}"' if name else "name=''"])
        try:
            found = points([f"name={name}"])
        except UserError:
            continue
        assert (tmp_path / found[0].name).resolve().parent == tmp_path.resolve()
    record("S10", "run names and values of sweeps", tries=2 * len(names), outside=0)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_s10_links_in_a_checkpoint(name: str, sound: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound, run)
    (run / CHECKPOINT / name).rename(tmp_path / "elsewhere")
    (run / CHECKPOINT / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataIntegrityError):
        CheckpointStore(run / "checkpoints").newest()
    record("S10", f"a link in place of a checkpoint's {name}", rc=3, refused=1)


def test_s10_a_manifest_that_names_other_files(sound: Path, tmp_path: Path, record: Recorder) -> None:
    names = ("../../config.yaml", "/etc/passwd", "other.safetensors", "")
    for i, name in enumerate(names):
        run = tmp_path / str(i)
        shutil.copytree(sound, run)
        manifest = parsed(run / CHECKPOINT / "manifest.json")
        manifest["files"][name] = manifest["files"].pop("tensors.safetensors")
        forged(run / CHECKPOINT / "manifest.json", manifest)
        with pytest.raises(DataIntegrityError):
            CheckpointStore(run / "checkpoints").newest()
    record("S10", "checkpoint manifests that name other files", tries=len(names), rc=3)


def test_s10_what_is_written_goes_through_no_link(sound: Path, tmp_path: Path, record: Recorder) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(sound, run)
    before = (run / "status.json").read_text().replace("preempted", "failed")
    outside.write_text(before)
    (run / "status.json").unlink()
    (run / "status.json").symlink_to(outside)
    assert read_status(run)["state"] == "preempted"  # as the ledger has it: the link is not followed
    write_status(run, state="running")
    assert outside.read_text() == before
    assert not (run / "status.json").is_symlink() and read_status(run)["state"] == "preempted"
    record("S10", "status.json is a link out of the run", outside_changed=False)


# ---- S14 -----------------------------------------------------------------------------------------------------------

EVIL = "a\x1b[31m\rb\n12:00:00 forged\u202e"


def test_s14_names_in_sentences_and_logs(record: Recorder) -> None:
    for error in (UserError(f"no file {EVIL}"), DataIntegrityError(EVIL)):
        assert str(error).isprintable() and "\\x1b[31m" in str(error)
    entry = logging.LogRecord("", logging.INFO, "", 0, "replaced %s", (EVIL,), None)
    lines = PrintableLines("%(message)s").format(entry).split("\n")
    assert all(line.isprintable() for line in lines) and all(line.startswith("    ") for line in lines[1:])
    record("S14", "control characters in errors and logs", raw=0)


def test_s14_names_of_classes_and_files(cli: Callable[..., Answer], tmp_path: Path, record: Recorder) -> None:
    folder, said = tmp_path / "images", []
    for name in ("plain", EVIL.replace("\n", "").replace("\r", "")):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    (folder / "plain" / "bad\x1b]0;title\x07\n.png").write_bytes(b"no image")
    shards = tmp_path / "s"
    looks = [("info", shards), ("verify", shards), ("verify", tmp_path / "no\x1b[31m\n"), ("info", shards, "--json")]
    for words in [("build", f"folder:{folder}", shards, "--size", "16"), *looks]:
        said.extend(cli("shards", *words)[1:])
    assert (shards / "manifest.json").exists()
    assert "\\x1b[31m" in "".join(said)  # the name is shown
    assert not any(c in text for text in said for c in "\x1b\x07\r\u202e")
    record("S14", "control characters in names of classes and files", raw=0)


def test_s14_the_report_shows_text(sound: Path, tmp_path: Path, record: Recorder) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound, run)
    script = "<script>alert(1)</script>"
    for path in (run / "evaluation").glob("*.json"):
        scores = parsed(path)
        forged(path, {**scores, "class_names": [script] * 10})
    forged(run / "env.json", {**parsed(run / "env.json"), "command": [script]})
    (run / "config.yaml").write_text(f"name: '{script}'\n# </pre>{script}\n")
    page = render(read_run(run), Gallery())
    assert script not in page and "&lt;script&gt;" in page
    record("S14", "markup in names on the report", raw=0)


def test_s14_a_terminal_shows_status_as_text(
    sound: Path, tmp_path: Path, cli: Callable[..., Answer], record: Recorder
) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound, run)
    forged(run / "status.json", {**parsed(run / "status.json"), "state": "failed", "reason": EVIL})
    forged(run / "events.jsonl", [{"event": EVIL, "time": EVIL, "epoch": EVIL}] * 3)
    code, output, error = cli("status", run)
    assert code == 0 and "\\x1b" in output
    assert not any(c in output + error for c in "\x1b\r\u202e")
    record("S14", "control characters in status and events", raw=0)
