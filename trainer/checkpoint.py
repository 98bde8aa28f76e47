"""Checkpoints as folders, committed by our own manifest, and exact resume from the newest valid one.

A checkpoint is written under a temporary name and every file is synchronised to disk; `manifest.json` holds the sha256
of each, and one of itself. Then, while the fence keeps every other writer out, the folder is renamed, `COMPLETE` comes
last inside it, and the commit is recorded: only from there on is it acknowledged. What is not complete is ignored and
overwritten. Which one is newest is said by (attempt, epoch, step) in the manifests, never by names or file times.
Nothing in it is pickled: tensors are safetensors, the rest is JSON.

    checkpoints/step-00000120/{tensors.safetensors, state.json, manifest.json, COMPLETE}   checkpoints/{latest, best}
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data_shards.errors import DataIntegrityError, UserError
from data_shards.files import sha256_of, sync, write_text
from data_shards.manifest import canonical_json
from trainer.model import not_finite
from trainer.tensor_file import read_tensors

FORMAT = 3
FILES = ("tensors.safetensors", "state.json")
_MAX_JSON_BYTES = 256 << 20
log = logging.getLogger(__name__)

Record = Callable[[dict[str, Any]], None]
Fence = Callable[[], AbstractContextManager[Record]]


class Poisoned(DataIntegrityError):
    """A checkpoint holds values that are not finite; it is never written, and not gone on from. Exit code 4."""

    exit_code = 4


class SaveFailed(UserError):
    """A checkpoint could not be written; the ones before it are intact. Exit code 70."""

    exit_code = 70


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: named tensors and a JSON-able state with `epoch`, `step_in_epoch` and `step`."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


@contextmanager
def no_fence() -> Iterator[Record]:
    """The fence of a store that has no other writers."""
    yield lambda facts: None


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: RUN/checkpoints.
        keep: how many of the newest are kept, besides the best.
        identity: names whose checkpoints these are ("run", "config"); others are not gone on from.
        fence: entered for the moment of a commit; keeps other writers out and records what is durable.
    """

    def __init__(
        self, root: Path, keep: int = 2, identity: Mapping[str, str] | None = None, fence: Fence = no_fence
    ) -> None:
        self.root, self.keep, self.identity, self.fence = root, keep, dict(identity or {}), fence

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Commit a checkpoint; on return it is durable and acknowledged.

        Raises:
            Poisoned: a tensor is not finite.
            SaveFailed: the disk is full, or cannot be written to; nothing is left of the attempt.
            Whatever the fence raises when this writer has been replaced.
        """
        if poisoned := not_finite(checkpoint.tensors):
            raise Poisoned(f"refusing to save a checkpoint with non-finite values in {poisoned[0]}")
        temporary = self.root / f".step-{checkpoint.state['step']:08d}.tmp"
        try:
            self._clean()
            manifest = self._write(temporary, checkpoint, best)
            with self.fence() as record:
                final = self._publish(temporary)
                facts = {name: manifest[name] for name in ("epoch", "step", "sha256")}
                record({**facts, "checkpoint": final.name})
            self._retire()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error)
            raise SaveFailed(
                f"cannot save the checkpoint of step {checkpoint.state['step']} in {self.root}: {reason};"
                " the one before it is intact"
            ) from None
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final

    def _clean(self) -> None:
        """Make the folder, and remove what a killed writer left: only the holder of the fence writes here."""
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(".step-*.tmp"):
            shutil.rmtree(left)

    def _write(self, folder: Path, checkpoint: Checkpoint, best: bool) -> dict[str, Any]:
        folder.mkdir()
        tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
        save_file(tensors, folder / FILES[0])
        (folder / FILES[1]).write_text(json.dumps(checkpoint.state, sort_keys=True))
        order = {key: checkpoint.state.get(key, 0) for key in ("attempt", "epoch", "step")}
        files = {name: sha256_of(folder / name) for name in FILES}
        manifest = {"format": FORMAT, "files": files, "best": best, **order, **self.identity}
        manifest["sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        for name in (*FILES, "manifest.json"):
            sync(folder / name)
        sync(folder)
        return manifest

    def _publish(self, temporary: Path) -> Path:
        """Give the folder a name that is free: one of the same step may be all that another attempt has."""
        name = temporary.name[1 : -len(".tmp")]
        final = self.root / name
        number = 1
        while os.path.lexists(final):
            final = self.root / f"{name}.{number}"
            number += 1
        temporary.rename(final)
        (final / "COMPLETE").touch()
        for path in (final / "COMPLETE", final, self.root):
            sync(path)
        write_text(self.root / "latest", final.name)
        return final

    def _retire(self) -> None:
        """Remove old checkpoints; the newest `keep` and the best stay, and what is damaged stays for a look at it."""
        found = self.candidates()
        best = next((path for path, manifest in found if manifest["best"]), None)
        if best is not None:
            write_text(self.root / "best", best.name)
        for path, _ in found[self.keep :]:
            if path != best:
                (path / "COMPLETE").unlink()  # first: a removal that is cut short must not look like a checkpoint
                shutil.rmtree(path)

    def complete(self) -> list[Path]:
        """Return the folders of complete checkpoints, in no order."""
        return [path for path in self.root.glob("step-*") if (path / "COMPLETE").exists()]

    def candidates(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return (folder, manifest) of this run's complete checkpoints, newest first; the rest is named in the log."""
        found = []
        for path in self.complete():
            try:
                manifest = read_manifest(path)
                self._check_ours(path, manifest)
                found.append((path, manifest))
            except DataIntegrityError as error:
                log.warning("%s; it is left out", error)
        return sorted(found, key=lambda item: (*_order(item[1]), item[0].name), reverse=True)

    def _check_ours(self, path: Path, manifest: Mapping[str, Any]) -> None:
        for name, value in self.identity.items():
            if manifest.get(name) != value:
                raise DataIntegrityError(f"checkpoint {path} is of another {name}")

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose bytes are what was written; None when there never was one.

        Raises:
            DataIntegrityError: there are checkpoints, and none of them can be gone on from.
        """
        found = self.newest_valid()
        return None if found is None else found[1]

    def newest_valid(self) -> tuple[Path, Checkpoint] | None:
        """Return folder and content of `newest`; raises as it does."""
        for path, _ in self.candidates():
            try:
                checkpoint = read(path)
                if poisoned := not_finite(checkpoint.tensors):
                    raise Poisoned(f"checkpoint {path} holds non-finite values in {poisoned[0]}")
                return path, checkpoint
            except DataIntegrityError as error:
                log.warning("%s; trying the one before it", error)
        if damaged := self.complete():
            for path in damaged:
                read_manifest(path)  # of another format: says so, instead of damage
            raise DataIntegrityError(f"every checkpoint in {self.root} is damaged; nothing to resume from")
        return None

    def best(self) -> Checkpoint:
        """Return the best checkpoint by the validation score, or the newest while there is no score.

        Raises:
            UserError: none was saved yet.
        """
        return read(self.best_path())

    def best_path(self) -> Path:
        """Return the folder of `best`."""
        found = self.candidates()
        if not found:
            raise UserError(f"{self.root} holds no checkpoint yet")
        return next((path for path, manifest in found if manifest["best"]), found[0][0])


def _order(manifest: Mapping[str, Any]) -> tuple[int, int, int]:
    return manifest["attempt"], manifest["epoch"], manifest["step"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint after checking it against its own sha256.

    Raises:
        DataIntegrityError: it is damaged.
        UserError: it was written by another version of this program.
    """
    manifest = _read_json(folder / "manifest.json")
    if isinstance(manifest.get("format"), int) and manifest["format"] != FORMAT:
        raise UserError(
            f"checkpoint {folder} has format {manifest['format']}, this version reads {FORMAT}; go on with the version"
            " that wrote it"
        )
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    try:
        sound = hashlib.sha256(canonical_json(body)).hexdigest() == manifest.get("sha256")
        sound = (
            sound
            and set(body["files"]) == set(FILES)
            and type(body["best"]) is bool
            and all(type(key) is int for key in _order(body))
        )
    except (ValueError, TypeError, KeyError):
        sound = False
    if not sound:
        raise DataIntegrityError(f"checkpoint {folder} is damaged: manifest.json is not what was written")
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_JSON_BYTES:
            raise DataIntegrityError(f"checkpoint {path.parent} is damaged: {path.name} is no plain file of sane size")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataIntegrityError(f"checkpoint {path.parent} is damaged: {type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise DataIntegrityError(f"checkpoint {path.parent} is damaged: {path.name} holds no mapping")
    return content


def read(folder: Path) -> Checkpoint:
    """Read one checkpoint after checking every file against the manifest.

    Raises:
        DataIntegrityError: a file is missing, or its bytes changed.
    """
    manifest = read_manifest(folder)
    try:
        for name in FILES:
            if sha256_of(folder / name) != manifest["files"][name]:
                raise DataIntegrityError(f"checkpoint {folder} is damaged: {name} is not what was written")
        return Checkpoint(read_tensors(folder / FILES[0]), _read_json(folder / FILES[1]))
    except (OSError, ValueError, SafetensorError) as error:
        raise DataIntegrityError(f"checkpoint {folder} is damaged: {type(error).__name__}: {error}") from None


def content_hash(checkpoint: Checkpoint) -> str:
    """Return one sha256 over weights, moments, partition, assignment, order position and controller snapshot."""
    digest = _digest(checkpoint.tensors)
    state = {key: value for key, value in checkpoint.state.items() if key not in ("attempt", "time", "fingerprint")}
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return one sha256 over names, types, shapes and values."""
    return _digest(tensors).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest
