"""Embedded images as one Arrow file: who each is, and its vector. What an index of a run keeps beside its manifest.

Any program that reads Arrow can use it: a row per image, with `sample_id`, `label`, `class`, `group`, `path`, `split`
and `vector`, a list of D float32 that is read as a view into the mapping.

Legend: M images, D embedding width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_shards.arrow_file import mapped, numbers, only_batch, write_batch
from data_shards.errors import DataIntegrityError
from data_shards.reader import SplitReader

_KIND = "catalogue"
Texts = npt.NDArray[np.object_]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Catalogue:
    """All (M,), but `vectors` (M, D); `groups` are "" where there is none. Sample ids are unique."""

    sample_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    classes: Texts
    groups: Texts
    paths: Texts
    splits: Texts
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.sample_ids)

    @classmethod
    def of_split(cls, reader: SplitReader, vectors: Vectors) -> Catalogue:
        """Return the images of a split with their (M, D) vectors, in row order."""
        names = np.array(reader.classes, dtype=object)
        return cls(
            np.asarray(reader.sample_ids, dtype=np.int64),
            np.asarray(reader.labels, dtype=np.int32),
            names[reader.labels],
            np.asarray(reader.groups, dtype=object),
            np.array([reader.path(row) for row in range(len(reader))], dtype=object),
            np.full(len(reader), reader.name, dtype=object),
            vectors,
        )

    @classmethod
    def joined(cls, parts: Sequence[Catalogue]) -> Catalogue:
        """Return the images of all parts, one after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Sample id -> row."""
        return {int(sample): row for row, sample in enumerate(self.sample_ids)}

    @cached_property
    def rows_of_group(self) -> dict[str, list[int]]:
        """Group name -> its rows, ascending; images without a group are in none."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, group in enumerate(self.groups):
            if group:
                found[group].append(row)
        return dict(found)


def write_catalogue(path: Path, images: Catalogue) -> None:
    """Write the file; it is durable on return."""
    num_dims = images.vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(images.vectors, dtype=np.float32).reshape(-1))
    columns = [
        pa.array(images.sample_ids),
        pa.array(images.labels),
        *(pa.array(texts.tolist(), pa.string()) for texts in _texts(images)),
        pa.FixedSizeListArray.from_arrays(flat, type=_schema(num_dims).field("vector").type),
    ]
    write_batch(path, pa.RecordBatch.from_arrays(columns, schema=_schema(num_dims)))


def read_catalogue(path: Path, num_dims: int) -> Catalogue:
    """Map and check a file; raises DataIntegrityError when it is not a catalogue of D = `num_dims` finite vectors."""
    batch = only_batch(path, mapped(path, _KIND), _schema(num_dims), _KIND)
    for name in ("class", "group", "path", "split", "vector"):
        if batch.column(name).null_count:
            raise DataIntegrityError(f"{path} has empty values in its column {name}.")
    values = batch.column("vector").flatten()
    if values.null_count or len(values) != batch.num_rows * num_dims:
        raise DataIntegrityError(f"{path} has empty values in its column vector.")
    vectors: Vectors = values.to_numpy(zero_copy_only=True).reshape(batch.num_rows, num_dims)
    if not (np.abs(vectors) <= 1.001).all():  # also false for a NaN
        raise DataIntegrityError(f"{path} holds vectors that are not those of an embedding.")
    ids = numbers(batch, "sample_id", _KIND)
    if len(np.unique(ids)) < len(ids):
        raise DataIntegrityError(f"{path} holds a sample id twice.")
    classes, groups, paths, splits = (_objects(batch, name) for name in ("class", "group", "path", "split"))
    return Catalogue(ids, numbers(batch, "label", _KIND), classes, groups, paths, splits, vectors)


def _texts(images: Catalogue) -> tuple[Texts, ...]:
    return images.classes, images.groups, images.paths, images.splits


def _objects(batch: pa.RecordBatch, name: str) -> Texts:
    return np.array(batch.column(name).to_pylist(), dtype=object)


def _schema(num_dims: int) -> pa.Schema:
    kinds: list[tuple[str, Any]] = [("sample_id", pa.int64()), ("label", pa.int32())]
    kinds += [(name, pa.string()) for name in ("class", "group", "path", "split")]
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), num_dims)
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in [*kinds, ("vector", vector)]])
