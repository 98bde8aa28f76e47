"""Embed a split on all ranks and score it on rank 0.

Rows are embedded in fixed canonical blocks, whole blocks per rank, so that no value depends on the number of ranks.

Legend: S samples, D embedding width, F feature width, h and w pixels of the attention map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file

from data_shards.loader import embed_loader
from data_shards.reader import SplitReader
from data_shards.samplers import blocks, shares
from trainer import distributed
from trainer.heads.embedded import Embedded
from trainer.metrics.neighbours import group_codes, neighbours
from trainer.metrics.retrieval import retrieval_scores
from trainer.model import EmbeddingModel
from trainer.subspaces.partition import SubspacePartition

Array = npt.NDArray[Any]
Exclude = Literal["none", "group", "scan"]


@dataclass(frozen=True)
class EmbedOptions:
    """How a split is embedded: evaluation transforms, batch size, precision, loader workers."""

    transform: Any
    batch_size: int = 64
    precision: str = "fp32"
    num_workers: int = 0


@torch.no_grad()
def embed(model: EmbeddingModel, images: torch.Tensor, precision: str) -> Embedded:
    """Return the embedding of images (B, C, S, S) in the layout and the precision of evaluation."""
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(images)  # type: ignore[no-any-return]


@torch.no_grad()
def embed_blocks(
    model: EmbeddingModel, reader: SplitReader, options: EmbedOptions, rows: Array | None = None
) -> Iterator[tuple[Array, Embedded]]:
    """Yield (row numbers, embedding) of this rank's share of a split, or of some rows of it, in evaluation mode."""
    wanted = np.arange(len(reader)) if rows is None else rows
    canonical = blocks(len(wanted), options.batch_size)
    own = [wanted[canonical[i]] for i in shares(len(canonical), distributed.rank(), distributed.world_size())]
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    try:
        loader = embed_loader(reader, own, options.transform, options.num_workers, parameter.device)
        for block, images in loader:
            distributed.pat()
            yield block, embed(model, images, options.precision)
    finally:
        model.train(was_training)


def embed_split(
    model: EmbeddingModel, reader: SplitReader, partition: SubspacePartition, options: EmbedOptions, maps: bool = False
) -> dict[str, Array]:
    """Return, on every rank, {"vectors": (S, D) unit float32} in row order, and "maps" (S, h, w) float16 on request."""
    vectors, gates = [], []
    for _, embedded in embed_blocks(model, reader, options):
        vectors.append(partition.normalize(embedded.vectors.float()))
        if maps and embedded.maps is not None:
            gates.append(embedded.maps.float().mean(dim=1).half())
    width = partition.num_dims
    device = next(model.parameters()).device
    with distributed.stage("gather of the embedded split"):
        local = torch.cat(vectors) if vectors else torch.zeros(0, width, device=device)
        whole = {"vectors": distributed.gather_uneven_rows(local).cpu().numpy()}
        shape = distributed.broadcast_json(list(gates[0].shape[1:]) if gates else [])
        if shape:
            local = torch.cat(gates) if gates else torch.zeros(0, *shape, dtype=torch.float16, device=device)
            whole["maps"] = distributed.gather_uneven_rows(local).cpu().numpy()
    return whole


def owners(reader: SplitReader, exclude: Exclude) -> Array | None:
    """Return (S,) names: an image is left out of the gallery of all others of its name; None: only of its own.

    "group" is the column of the shards (patient, lesion), "" being none. "scan" is the file that a patch was cut from:
    the path in front of "#", as in "scan3.tif#x=2000,y=0"; an image that was not cut is its own.
    """
    if exclude == "group":
        return np.asarray(reader.groups)
    if exclude == "scan":
        return np.array([reader.path(row).partition("#")[0] for row in range(len(reader))])
    return None


def scores(
    vectors: Array,
    reader: SplitReader,
    partition: SubspacePartition,
    nmi_seeds: int,
    exclude: Exclude = "none",
    per_subspace: bool = False,
) -> dict[str, Any]:
    """Return the scores of design section 6 for (S, D) vectors of a split: of leave-one-out, what is excluded apart."""
    from trainer.metrics.clustering import clustering_scores
    from trainer.metrics.information import information

    labels = np.asarray(reader.labels)
    groups = owners(reader, exclude)
    found = {
        "split": reader.name,
        "exclude": exclude,
        "num_samples": len(labels),
        "num_classes": len(np.unique(labels)),
        **clustering_scores(vectors, labels, seeds=nmi_seeds),
        **retrieval_scores(vectors, labels, groups=groups),
    }
    if per_subspace:
        found["information"] = information(vectors, reader.factors)
        found["per_subspace"] = [
            {"subspace": k, "width": partition.widths[k], **_short(vectors[:, columns], reader, groups)}
            for k, columns in enumerate(partition.slices)
        ]
    return found


def _short(vectors: Array, reader: SplitReader, groups: Array | None) -> dict[str, Any]:
    """Return the scores of one subspace alone, and what it knows of each factor."""
    from trainer.metrics.clustering import clustering_scores
    from trainer.metrics.information import information

    block, labels = np.ascontiguousarray(vectors), np.asarray(reader.labels)
    found = retrieval_scores(block, labels, groups=groups)
    return {
        "recall_at_1": found["recall"]["1"],
        "map_at_r": found["map_at_r"],
        "nmi": clustering_scores(block, labels, seeds=1)["nmi"],
        "information": information(block, reader.factors),
    }


def monitored(found: dict[str, Any], name: str) -> float:
    """Return one number of the scores by its configuration name ("nmi", "recall_at_1", ...); more is better."""
    if name == "loss":
        return -float(found["loss"])
    if name in ("nmi", "ami", "dice"):
        return float(found[name]["mean"])
    return float(found["recall"]["1"]) if name == "recall_at_1" else float(found[name])


def has_relevant(labels: Array, groups: Array | None) -> npt.NDArray[np.bool_]:
    """Return (S,): is there another image of the class, of another group?"""
    names = np.arange(len(labels)) if groups is None else group_codes(groups)
    _, classes, in_class = np.unique(labels, return_inverse=True, return_counts=True)
    _, both, alike = np.unique(np.stack([labels, names]), axis=1, return_inverse=True, return_counts=True)
    return in_class[classes.reshape(-1)] > alike[both.reshape(-1)]


def write_arrays(path: Any, embedded: dict[str, Array], reader: SplitReader, exclude: Exclude = "none") -> None:
    """Write vectors, maps, labels and the ten nearest neighbours of a split as safetensors, for the report."""
    groups = owners(reader, exclude)
    found, distances = neighbours(embedded["vectors"], min(10, len(reader) - 1), groups=groups)
    arrays = {
        **embedded,
        "sample_ids": np.asarray(reader.sample_ids, dtype=np.int64),
        "labels": np.asarray(reader.labels, dtype=np.int64),
        "asked": has_relevant(np.asarray(reader.labels), groups).astype(np.uint8),
        "neighbours": np.asarray(found, dtype=np.int64),
        "neighbour_distances": np.asarray(distances, dtype=np.float32),
    }
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
