"""What every image of an evaluated split contributes to a run's scores: the rows that the bootstrap draws from.

Computed once per run from evaluation/SPLIT.safetensors by the functions that score a run, and kept beside it in a file
whose name is a key of everything it depends on, so a stale one is never read.

Legend: N images of the split, Q clusterings (k-means seeds).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from data_shards.errors import DataIntegrityError, intact
from data_shards.files import sha256_of
from launch.config import RunConfig, stored_config
from trainer.evaluate import owners
from trainer.metrics.clustering import clusterings
from trainer.metrics.retrieval import query_scores
from trainer.tensor_file import read_tensors

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
VALUES = ("recall_1", "recall_2", "recall_4", "recall_8", "nearest", "map_at_r", "r_precision")
_FORMAT = 1


@dataclass(frozen=True)
class Queries:
    """One run's values of every image of a split.

    sample_ids, labels (N,); asked (N,) False for lone queries, whose values are 0; values {name: (N,)}; clusters
    (Q, N); expected (Q,) mutual information of the clusterings with the classes by chance, which AMI subtracts.
    """

    sample_ids: Ints
    labels: Ints
    asked: npt.NDArray[np.bool_]
    values: dict[str, Floats]
    clusters: Ints
    expected: Floats


def read_queries(run: Path, split: str, tell: Callable[[str], None]) -> Queries:
    """Return a completed run's values, from the file beside its vectors if there is one; `tell` hears when not.

    Raises:
        DataIntegrityError: the vectors are missing or damaged.
        UserError: groups or scans are excluded, and the shards that know them are gone.
    """
    config = stored_config(run)
    if config.evaluate.by == "masks":
        return _overlaps(run / "evaluation" / f"{split}-overlaps.safetensors")
    source = run / "evaluation" / f"{split}.safetensors"
    if not source.exists():
        raise DataIntegrityError(f"{source} is missing; run `subspace evaluate` again")
    kept = source.with_name(f"{split}-queries-{_key(source, config)}.safetensors")
    if kept.exists():
        try:
            return _read(kept)
        except DataIntegrityError:
            pass  # cut short by a power cut: it is made again
    tell(f"{run}: scores of the single images, kept for the next time")
    with intact(str(source)):
        found = _computed(source, split, config)
    for stale in source.parent.glob(f"{split}-queries-*.safetensors"):
        stale.unlink(missing_ok=True)
    _write(kept, found)
    return found


def _overlaps(source: Path) -> Queries:
    """Return the Dice and IoU of every image."""
    if not source.exists():
        raise DataIntegrityError(f"{source} is missing; run `subspace evaluate` again")
    with intact(str(source)):
        tensors = {name: value.numpy() for name, value in read_tensors(source).items()}
        size = len(tensors["sample_ids"])
        values = {name: tensors[name].astype(np.float64) for name in ("dice", "iou")}
        none = np.zeros((1, size), dtype=np.int64)
        return Queries(
            tensors["sample_ids"], tensors["labels"], np.ones(size, dtype=np.bool_), values, none, np.zeros(1)
        )


def _key(source: Path, config: RunConfig) -> str:
    facts = (_FORMAT, sha256_of(source), config.evaluate.nmi_seeds, config.evaluate.exclude)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _computed(source: Path, split: str, config: RunConfig) -> Queries:
    tensors = read_tensors(source)
    vectors, labels = tensors["vectors"].float().numpy(), tensors["labels"].long().numpy()
    sample_ids = tensors["sample_ids"].long().numpy()
    if not len(vectors) == len(labels) == len(sample_ids):
        raise ValueError("arrays that do not fit together")
    groups = _groups(config, split, sample_ids)
    found = query_scores(vectors, labels, groups=groups)
    asked = found["num_relevant"] > 0
    clusters = np.stack(clusterings(vectors, len(np.unique(labels)), config.evaluate.nmi_seeds)).astype(np.int64)
    return Queries(
        sample_ids,
        labels,
        asked,
        {name: np.where(asked, found[name], 0.0) for name in VALUES},
        clusters,
        np.array([expected_information(labels, each) for each in clusters]),
    )


def expected_information(labels: Ints, clusters: Ints) -> float:
    table = contingency_matrix(labels, clusters, sparse=True).astype(np.int64)
    return float(expected_mutual_information(table, len(labels)))


def _groups(config: RunConfig, split: str, sample_ids: Ints) -> npt.NDArray[np.str_] | None:
    """Return whose images are left out of each other's gallery (N,); the vectors' file does not hold it."""
    if config.evaluate.exclude == "none":
        return None
    from data_shards.reader import open_shards

    reader = open_shards(Path(config.data.shards), verify=False).split(split)
    if not np.array_equal(np.asarray(reader.sample_ids), sample_ids):
        raise DataIntegrityError(f"{config.data.shards} does not hold the {split} images that the run was evaluated on")
    return owners(reader, config.evaluate.exclude)


def _read(path: Path) -> Queries:
    tensors = read_tensors(path)
    with intact(str(path)):
        return Queries(
            tensors["sample_ids"].numpy(),
            tensors["labels"].numpy(),
            tensors["asked"].bool().numpy(),
            {name: tensors[name].numpy() for name in VALUES},
            tensors["clusters"].long().numpy(),
            tensors["expected"].numpy(),
        )


def _write(path: Path, queries: Queries) -> None:
    arrays = {
        "sample_ids": queries.sample_ids,
        "labels": queries.labels,
        "asked": queries.asked.astype(np.uint8),
        "clusters": queries.clusters.astype(np.int32),
        "expected": queries.expected,
        **queries.values,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
