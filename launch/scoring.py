"""The final scores of splits: all ranks embed, rank 0 searches and writes RUN/evaluation."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from data_shards.errors import UserError
from data_shards.files import write_text
from data_shards.reader import SplitReader
from launch import build
from launch.config import RunConfig
from launch.objective import build_objective
from launch.parts import constructed, entry
from trainer import distributed, evaluate
from trainer.metrics.protocols import Items, Protocols, protocol_scores
from trainer.metrics.reranking import KReciprocal, QueryExpansion, Reranking
from trainer.model import EmbeddingModel
from trainer.nonfinite import NonFinite
from trainer.segmentation.scores import Overlap
from trainer.subspaces.partition import SubspacePartition
from trainer.validators import Overlaps

RERANKINGS: dict[str, Callable[..., Reranking | None]] = {
    "none": lambda: None,
    "query_expansion": QueryExpansion,
    "k_reciprocal": KReciprocal,
}


def protocols(config: RunConfig) -> Protocols:
    """Return how splits are searched.

    Raises:
        UserError: evaluate.rerank names nothing, or its arguments make no sense.
    """
    settings, where = config.evaluate, "evaluate.rerank"
    rerank = constructed(where, entry(RERANKINGS, settings.rerank, where))
    return Protocols(settings.gallery, None if rerank is None else (settings.rerank.name, rerank), settings.scans)


def check_queries(config: RunConfig, splits: Sequence[SplitReader]) -> None:
    """Raise UserError for a split in which no image has anything to find: its scores would be of nothing."""
    exclude = config.evaluate.exclude
    for split in splits:
        if not evaluate.has_relevant(np.asarray(split.labels), evaluate.owners(split, exclude)).any():
            left = "" if exclude == "none" else f" that evaluate.exclude {exclude} does not leave out"
            raise UserError(f"no image of the {split.name} split has another one of its class to find{left}")


def score_splits(
    config: RunConfig,
    run: Path,
    network: EmbeddingModel,
    partition: SubspacePartition,
    train: SplitReader,
    splits: Sequence[SplitReader],
) -> dict[str, dict[str, Any]]:
    """Score splits and write evaluation/{split}.json and .safetensors; only rank 0 writes, others get no scores.

    Bad images of the training split are replaced in its gallery as they were in training.
    """
    if config.evaluate.by != "retrieval":
        return _validated(config, run, network, partition, len(train.classes), splits)
    options = build.embed_options(config)
    others = {}
    if "train" in config.evaluate.gallery:
        embedded = evaluate.embed_split(network, train, partition, options)
        others["train"] = _items(config, train, embedded["vectors"])
    found = {}
    for split in splits:
        embedded = evaluate.embed_split(network, split, partition, options, maps=True)
        leads = distributed.rank() == 0
        found[split.name] = _score(config, run, partition, split, embedded, others) if leads else {}
    return found


def _validated(
    config: RunConfig,
    run: Path,
    network: EmbeddingModel,
    partition: SubspacePartition,
    num_classes: int,
    splits: Sequence[SplitReader],
) -> dict[str, dict[str, Any]]:
    """Score splits as the validation split was scored at every epoch; every rank gets the scores."""
    objective = build_objective(config, num_classes, distributed.device())
    found = {}
    for split in splits:
        judge = build.validator(config, split, objective)
        counted = judge.counted(network) if isinstance(judge, Overlaps) else None
        scores = judge.scores(counted) if isinstance(judge, Overlaps) and counted else judge(network, partition)
        if scores is None:
            raise NonFinite(f"the best checkpoint gives numbers that are not finite for the {split.name} split")
        found[split.name] = scores
        if distributed.rank() == 0:
            _write(run, split.name, scores)
            if counted is not None:
                _write_overlaps(run, split, counted)
    return found


def _write_overlaps(run: Path, split: SplitReader, counted: Overlap) -> None:
    """Write evaluation/{split}.csv, a line per image, and the same numbers for programs."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "dice", "iou", "predicted_pixels", "true_pixels"])
    numbers = zip(counted.dice, counted.iou, counted.predicted, counted.true, strict=True)
    for row, (dice, iou, predicted, true) in enumerate(numbers):
        rows.writerow([split.path(row), f"{dice:.6f}", f"{iou:.6f}", predicted, true])
    write_text(run / "evaluation" / f"{split.name}.csv", text.getvalue())
    arrays = {
        "sample_ids": np.asarray(split.sample_ids, dtype=np.int64),
        "labels": np.asarray(split.labels, dtype=np.int64),
        "dice": counted.dice,
        "iou": counted.iou,
    }
    save_file(arrays, run / "evaluation" / f"{split.name}-overlaps.safetensors")


def _write(run: Path, split: str, scores: dict[str, Any]) -> None:
    target = run / "evaluation"
    target.mkdir(exist_ok=True)
    write_text(target / f"{split}.json", json.dumps(scores, indent=1) + "\n")


def _items(config: RunConfig, reader: SplitReader, vectors: evaluate.Array) -> Items:
    return Items(vectors, np.asarray(reader.labels), evaluate.owners(reader, config.evaluate.exclude))


def _score(
    config: RunConfig,
    run: Path,
    partition: SubspacePartition,
    split: SplitReader,
    embedded: dict[str, evaluate.Array],
    others: Mapping[str, Items],
) -> dict[str, Any]:
    """Return the scores of a split, which are written."""
    settings, vectors = config.evaluate, embedded["vectors"]
    found = evaluate.scores(vectors, split, partition, settings.nmi_seeds, settings.exclude, per_subspace=True)
    found.update(class_names=list(split.classes), widths=list(partition.widths), protocols=[])
    for scores in protocol_scores(_items(config, split, vectors), others, protocols(config)):
        distributed.pat()
        found["protocols"].append({**scores, "exclude": settings.exclude})
    _write(run, split.name, found)
    evaluate.write_arrays(run / "evaluation" / f"{split.name}.safetensors", embedded, split, settings.exclude)
    return found
