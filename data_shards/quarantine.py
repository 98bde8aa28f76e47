"""A split to train on: all of it or a part, and an image that is damaged or cannot be decoded is replaced, and told.

The substitute is an intact image of the same class, the first in an order keyed by (seed, sample id). Being intact is a
property of the file, so ranks, loader workers and resumed runs choose alike without a word. Labels, sample ids and
augmentation stay those of the row that was asked for. Evaluation reads plain splits, which stop at the first bad image:
scores of fewer images would not be comparable with those of other epochs, and a growth decision may hang on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from data_shards import keyed
from data_shards.decode import UInt8Array
from data_shards.errors import DataIntegrityError
from data_shards.manifest import Manifest
from data_shards.reader import CorruptImage, SplitReader
from data_shards.subset import part_of

Tell = Callable[..., None]
T = TypeVar("T")
log = logging.getLogger(__name__)


class TrainingReader(SplitReader):
    """Rows of a split; `bad` holds row -> reason of those that were replaced so far.

    A copy in a loader worker finds bad rows by itself; the loader hands them to `admit` of the reader it was made for.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        name: str,
        verify: bool = True,
        seed: int = 0,
        max_corrupt: float = 0.0,
        tell: Tell | None = None,
        fraction: float = 1.0,
    ) -> None:
        """Keep a `fraction` of every class (subset.py), of which up to `max_corrupt` may be replaced.

        `tell(sample_id=, path=, reason=)` hears of each image that is.
        """
        super().__init__(folder, manifest, name, verify)
        if fraction < 1:
            self.keep(part_of(self.labels, self.sample_ids, fraction, seed))
        self._seed, self._max_corrupt, self._tell = seed, max_corrupt, tell
        self._told: set[int] = set()

    def image(self, row: int, min_size: tuple[int, int] | None = None) -> UInt8Array:
        """Return the image of a row or its substitute as `SplitReader.image` does; raises DataIntegrityError when too
        many are bad."""
        read = super().image
        return self._mended([row], lambda rows: read(rows[0], min_size))

    def images(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> UInt8Array:
        """Return (N, H, W, C) uint8 of rows or their substitutes."""
        return self._mended([int(row) for row in rows], super().images)

    def mask(self, row: int) -> UInt8Array | None:
        """Return the mask of a row or its substitute."""
        read = super().mask
        return self._mended([row], lambda rows: read(rows[0]))

    def admit(self, found: Mapping[int, str], tell: bool = True) -> None:
        """Take note of bad rows, found here or by a copy; raises DataIntegrityError when they are too many."""
        self.bad.update(found)
        news = sorted(set(found) - self._told) if tell else []
        self._told.update(found)
        for row in news:
            log.warning("replaced while training: %s", found[row])
            if self._tell is not None:
                self._tell(sample_id=int(self.sample_ids[row]), path=self.path(row), reason=found[row])
        self._stop_if_too_many()

    def _mended(self, rows: list[int], read: Callable[[list[int]], T]) -> T:
        while True:
            try:
                return read([self._stand_in(row) for row in rows])
            except CorruptImage as error:
                self.bad[error.row] = str(error)
                self._stop_if_too_many()

    def _stand_in(self, row: int) -> int:
        if row not in self.bad:
            return row
        peers = np.flatnonzero(self.labels == self.labels[row])
        base = keyed.key(self._seed, "quarantine", int(self.sample_ids[row]))
        order = np.argsort(keyed.fold(base, self.sample_ids[peers]), kind="stable")
        for peer in peers[order].tolist():
            if peer not in self.bad:
                return int(peer)
        name = self.classes[self.labels[row]]
        raise DataIntegrityError(f"No image of the class '{name}' in the {self.name} split is intact. {self._advice()}")

    def _stop_if_too_many(self) -> None:
        if len(self.bad) > self._max_corrupt * len(self):
            raise DataIntegrityError(
                f"{len(self.bad)} of {len(self)} images of the {self.name} split are bad, data.max_corrupt allows "
                f"{self._max_corrupt:.2%}. {next(reversed(self.bad.values()))} {self._advice()}"
            )

    def _advice(self) -> str:
        return f"'subspace shards verify {self._folder}' names what is damaged."
