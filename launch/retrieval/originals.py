"""The pictures behind an index, from the shards that it was made of, if they are still there and still the same.

A sample id means the same image only in the same shards: pictures of others would be those of other patients.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from PIL import Image

from data_shards.augment import AugmentConfig
from data_shards.catalogue import Catalogue
from data_shards.errors import UserError
from data_shards.manifest import manifest_hash
from data_shards.reader import ShardFolder, SplitReader, open_shards
from launch.report.likeness import as_picture
from launch.report.thumbnails import SIDE, compressed, shards_near
from launch.retrieval.answer import Refused
from launch.retrieval.index_folder import Manifest
from launch.seen import Seen, of_row


class Originals:
    """Indexed images by sample id, as evaluation sees them."""

    def __init__(self, run: Path, manifest: Manifest, images: Catalogue, transform: AugmentConfig) -> None:
        self._run, self._manifest, self._images, self._transform = run, manifest, images, transform
        self._readers: dict[str, tuple[SplitReader, dict[int, int]]] = {}

    def seen(self, sample_id: int) -> Seen:
        """Return an indexed image. Raises Refused when it is none, or its shards are gone, changed or damaged."""
        row = self._images.row_of.get(sample_id)
        if row is None:
            raise Refused(f"no indexed image has the sample id {sample_id}", 404)
        folder = self._folder
        if folder is None:
            raise Refused(f"the shards {self._manifest.shards} are not here, or not those that were indexed", 404)
        try:
            reader, rows = self._split(folder, self._images.splits[row])
            return of_row(reader, rows[sample_id], self._transform)
        except (UserError, KeyError) as error:
            raise Refused(f"image {sample_id} cannot be read: {error}", 404) from None

    def thumbnail(self, sample_id: int) -> tuple[bytes, str]:
        """Return a small picture: its bytes, and "png" or "jpeg". Raises as `seen`."""
        picture = as_picture(self.seen(sample_id).pixels)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return compressed(picture)

    @cached_property
    def _folder(self) -> ShardFolder | None:
        path = shards_near(self._run, self._manifest.shards)
        try:
            folder = None if path is None else open_shards(path, verify=False)
        except UserError:
            return None
        return folder if folder and manifest_hash(folder.manifest) == self._manifest.shards_sha256 else None

    def _split(self, folder: ShardFolder, name: str) -> tuple[SplitReader, dict[int, int]]:
        if name not in self._readers:
            reader = folder.split(name)
            self._readers[name] = reader, {int(sample): row for row, sample in enumerate(reader.sample_ids)}
        return self._readers[name]
