"""Checkpoints as folders, committed by our own manifest, and exact resume from the newest valid one.

A checkpoint is written under a temporary name, every file is synchronised to disk, `manifest.json` holds the sha256
of each, the folder is renamed, `COMPLETE` comes last inside it and `latest` moves after that. What is not complete is
ignored and overwritten. Nothing in it is pickled: tensors are safetensors, the rest is JSON.

    checkpoints/step-00000120/{tensors.safetensors, state.json, manifest.json, COMPLETE}   checkpoints/{latest, best}
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_shards.errors import DataIntegrityError, UserError
from data_shards.files import sha256_of, sync, write_text
from trainer.model import not_finite

FORMAT = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: named tensors and a JSON-able state with `epoch`, `step_in_epoch` and `step`."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: RUN/checkpoints.
        keep: how many of the newest are kept, besides the best.
    """

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.root, self.keep = root, keep

    def save(self, checkpoint: Checkpoint, best: bool = False) -> Path:
        """Commit a checkpoint; on return it is durable.

        Raises:
            UserError: a tensor is not finite (a poisoned checkpoint is never written), or the disk is full.
        """
        poisoned = not_finite(checkpoint.tensors)
        if poisoned:
            raise UserError(f"refusing to save a checkpoint with non-finite values in {poisoned[0]}")
        final = self.root / f"step-{checkpoint.state['step']:08d}"
        temporary = self.root / f".{final.name}.tmp"
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._write(temporary, checkpoint)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            (final / "COMPLETE").touch()
            for path in (final / "COMPLETE", final, self.root):
                sync(path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"cannot save the checkpoint {final}: {error.strerror}; the one before it is intact"
            ) from None
        write_text(self.root / "latest", final.name)
        if best:
            write_text(self.root / "best", final.name)
        self._retire()
        return final

    @staticmethod
    def _write(folder: Path, checkpoint: Checkpoint) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
        save_file(tensors, folder / "tensors.safetensors")
        (folder / "state.json").write_text(json.dumps(checkpoint.state, sort_keys=True))
        files = {name: sha256_of(folder / name) for name in ("tensors.safetensors", "state.json")}
        order = {key: checkpoint.state[key] for key in ("epoch", "step")}
        (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": files, **order}))
        for name in (*files, "manifest.json"):
            sync(folder / name)
        sync(folder)

    def _pointer(self, name: str) -> str:
        path = self.root / name
        return path.read_text().strip() if path.exists() else ""

    def _retire(self) -> None:
        kept = {self._pointer("best"), *(path.name for path in self.complete()[: self.keep])}
        for path in self.complete():
            if path.name not in kept:
                shutil.rmtree(path)

    def complete(self) -> list[Path]:
        """Return the complete checkpoints, newest first, by the step in their name (never by file times)."""
        found = [path for path in self.root.glob("step-*") if (path / "COMPLETE").exists()]
        return sorted(found, key=lambda path: path.name, reverse=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose bytes are what was written; None when there never was one.

        Raises:
            DataIntegrityError: there are checkpoints, and all of them are damaged.
        """
        candidates = self.complete()
        for path in candidates:
            try:
                return read(path)
            except DataIntegrityError as error:
                log.warning("%s; trying the one before it", error)
        if candidates:
            raise DataIntegrityError(f"every checkpoint in {self.root} is damaged; nothing to resume from")
        return None

    def best(self) -> Checkpoint:
        """Return the best checkpoint by the validation score.

        Raises:
            UserError: none was saved yet.
        """
        name = self._pointer("best") or self._pointer("latest")
        if not name:
            raise UserError(f"{self.root} holds no checkpoint yet")
        return read(self.root / name)


def read(folder: Path) -> Checkpoint:
    """Read one checkpoint after checking every file against the manifest.

    Raises:
        DataIntegrityError: a file is missing, or its bytes changed.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise DataIntegrityError(
                f"checkpoint {folder} has format {manifest['format']}, this version reads {FORMAT}"
            )
        for name in ("tensors.safetensors", "state.json"):
            if sha256_of(folder / name) != manifest["files"][name]:
                raise DataIntegrityError(f"checkpoint {folder} is damaged: {name} is not what was written")
        return Checkpoint(load_file(folder / "tensors.safetensors"), json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataIntegrityError(f"checkpoint {folder} is damaged: {type(error).__name__}: {error}") from None


def content_hash(checkpoint: Checkpoint) -> str:
    """Return one sha256 over weights, moments, partition, assignment, order position and controller snapshot."""
    digest = hashlib.sha256()
    for name in sorted(checkpoint.tensors):
        value = checkpoint.tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    state = {key: value for key, value in checkpoint.state.items() if key not in ("attempt", "time", "fingerprint")}
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()
