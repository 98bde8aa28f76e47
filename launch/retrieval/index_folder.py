"""RUN/index: embedded images (Arrow), a faiss index where one is wanted, and a manifest that vouches for both.

    index/{images-HASH.arrow, screen-HASH.faiss, manifest.json}

Files carry their own hash in their names and are on the disk before the manifest that names them replaces the old one,
so whoever opens the folder finds the old index or the new one, never half of either. Nothing is parsed before its size
and sha256 have been compared with the manifest; that tells damage, not forgery: an index is only as trustworthy as
whoever can write to the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.vector_index import Kind, VectorIndex
from data_shards.catalogue import Catalogue, read_catalogue, write_catalogue
from data_shards.errors import DataIntegrityError, UserError
from data_shards.files import open_plain, sha256_of, sync, write_text
from data_shards.manifest import canonical_json
from trainer.subspaces.partition import SubspacePartition

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"(images|screen)-[0-9a-f]{16}\.(arrow|faiss)")
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_BYTES = 1 << 40
Count = Annotated[int, Field(ge=1, le=1 << 40)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Strict):
    """One file of the folder."""

    file: Annotated[str, Field(pattern=_NAME.pattern)]
    bytes: Count
    sha256: Sha256


class Novelty(_Strict):
    """From which distance to its nearest neighbour on an image is unlike what is indexed.

    `distance` is the `quantile` of the distances of `num_images` indexed images to their nearest of another group.
    """

    quantile: float
    distance: float
    num_images: Count


class Manifest(_Strict):
    """What is indexed, by which network, from which shards: folder, hash of their manifest, geometry."""

    format: int
    kind: Kind
    num_images: Count
    widths: Annotated[list[Count], Field(min_length=1, max_length=1 << 16)]
    classes: list[str]
    splits: list[str]
    weights: Sha256
    epoch: int
    shards: str
    shards_sha256: Sha256
    channels: int
    image_size: int | None
    fit: str
    novelty: Novelty | None
    images: FileEntry
    screen: FileEntry | None

    @property
    def partition(self) -> SubspacePartition:
        return SubspacePartition(tuple(self.widths))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, against another writer. Raises UserError when it is held or cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another process is writing {folder}; wait for it") from None
    finally:
        os.close(descriptor)


def put_images(folder: Path, images: Catalogue) -> FileEntry:
    """Write the catalogue under its own name."""
    temporary = folder / ".images.tmp"
    write_catalogue(temporary, images)
    return _named(temporary, "images", "arrow")


def put_screen(folder: Path, index: VectorIndex) -> FileEntry:
    """Write the faiss index under its own name."""
    temporary = folder / ".screen.tmp"
    temporary.write_bytes(index.to_bytes())
    sync(temporary)
    return _named(temporary, "screen", "faiss")


def commit(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the folder's; what it does not name is removed afterwards."""
    body = manifest.model_dump()
    body["sha256"] = hashlib.sha256(canonical_json(body)).hexdigest()
    write_text(folder / MANIFEST, json.dumps(body, indent=1) + "\n")
    named = {entry.file for entry in (manifest.images, manifest.screen) if entry is not None}
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name) and path.name not in named:
            path.unlink()


def read_manifest(folder: Path) -> Manifest:
    """Return the checked manifest.

    Raises:
        UserError: there is none, or it is of another version of this program.
        DataIntegrityError: it is not what was written.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} holds no index; make one with 'subspace index RUN'")
    try:
        with open_plain(path, _MAX_MANIFEST_BYTES) as stream:
            body = json.loads(stream.read())
        written = body.pop("sha256")
        sound = hashlib.sha256(canonical_json(body)).hexdigest() == written
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DataIntegrityError(f"{path} is not what was written; make the index again with 'subspace index RUN'")
    if body.get("format") != FORMAT:
        raise UserError(f"{path} has format {body.get('format')}, this program reads {FORMAT}; make the index again")
    try:
        return Manifest.model_validate_json(json.dumps(body))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataIntegrityError(f"{path} is not a manifest of an index: {first['loc']}: {first['msg']}") from None


def open_images(folder: Path, manifest: Manifest) -> Catalogue:
    """Map the indexed images. Raises DataIntegrityError when they are not what the manifest says."""
    path = _checked(folder, manifest.images)
    images = read_catalogue(path, manifest.partition.num_dims)
    if len(images) != manifest.num_images or images.labels.min() < 0 or images.labels.max() >= len(manifest.classes):
        raise DataIntegrityError(f"{path} does not hold the images that the manifest counts")
    return images


def open_screen(folder: Path, manifest: Manifest, images: Catalogue) -> VectorIndex:
    """Return the faiss index; an exact one is made of the vectors. Raises DataIntegrityError as `open_images` does."""
    if manifest.screen is None:
        return VectorIndex.build("exact", images.vectors)
    path = folder / manifest.screen.file
    try:
        with open_plain(path, manifest.screen.bytes) as stream:
            data = stream.read()
    except OSError as error:
        raise DataIntegrityError(f"{path}: {error.strerror}; make the index again") from None
    if hashlib.sha256(data).hexdigest() != manifest.screen.sha256:  # of the very bytes that faiss is given
        raise _damaged(path)
    return VectorIndex.from_bytes(manifest.kind, data, len(images), manifest.partition.num_dims)


def _checked(folder: Path, entry: FileEntry) -> Path:
    path = folder / entry.file
    try:
        with open_plain(path, _MAX_BYTES) as stream:
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise DataIntegrityError(f"{path}: {error.strerror}; make the index again") from None
    if size != entry.bytes or sha256_of(path) != entry.sha256:
        raise _damaged(path)
    return path


def _damaged(path: Path) -> DataIntegrityError:
    return DataIntegrityError(f"{path} is not what the manifest says: damaged; make the index again")


def _named(temporary: Path, stem: str, suffix: str) -> FileEntry:
    digest = sha256_of(temporary)
    final = temporary.with_name(f"{stem}-{digest[:16]}.{suffix}")
    entry = FileEntry(file=final.name, bytes=temporary.stat().st_size, sha256=digest)
    temporary.replace(final)
    sync(final.parent)
    return entry
