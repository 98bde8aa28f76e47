"""Read a run folder into one value: everything the report shows comes from files, never from a live run.

Parts may be missing (a run that was stopped, has one subspace, no attention or no test split); what is missing is
None or empty here and the page leaves it out. Lines that a restart repeated are taken from the last attempt.

Legend: N evaluated images, D embedding width, h x w attention map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataIntegrityError, UserError, intact
from data_shards.files import open_plain
from launch import yaml_file
from launch.status import read_status
from trainer.tensor_file import read_tensors

Record = dict[str, Any]
MAX_BYTES = 4 << 30  # metrics.jsonl of a long run
SPLITS = ("test", "validation")  # in the order of preference for pictures: test is what a paper reports


@dataclass(frozen=True)
class Arrays:
    """Per-image results of one split; row numbers in `neighbours` point into the same arrays, -1 = none."""

    sample_ids: np.ndarray  # (N,) int64
    labels: np.ndarray  # (N,) int64
    vectors: np.ndarray  # (N, D) float32
    neighbours: np.ndarray  # (N, k) int64
    distances: np.ndarray  # (N, k) float32
    maps: np.ndarray | None  # (N, h, w) float
    asked: np.ndarray | None = None  # (N,) bool: is there an image to find? None in older files

    def queries(self) -> np.ndarray:
        """Return (N,) bool: has the image another one of its class in its gallery, and any neighbour at all?"""
        _, index, sizes = np.unique(self.labels, return_inverse=True, return_counts=True)
        return (sizes[index] > 1 if self.asked is None else self.asked) & (self.neighbours[:, 0] >= 0)


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split and, where the vectors were kept, its arrays."""

    split: str
    scores: Record
    arrays: Arrays | None

    def class_name(self, label: int) -> str:
        names = self.scores.get("class_names") or []
        return str(names[label]) if 0 <= label < len(names) else str(label)


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path
    status: Record
    config: Record
    config_text: str
    env: Record
    steps: list[Record]
    epochs: list[Record]
    events: list[Record]
    evaluations: dict[str, Evaluation] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def seed(self) -> int:
        seed = self.config.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    @property
    def pictured(self) -> Evaluation | None:
        """The split that maps, confusion and panels show."""
        return next((self.evaluations[s] for s in SPLITS if s in self.evaluations), None)

    def named(self, event: str) -> list[Record]:
        """Return the events of one kind, oldest first."""
        return [e for e in self.events if e.get("event") == event]


def read_run(path: Path | str) -> Run:
    """Read a run folder; raises as `_read_run` does, also for values that are not of the kind they should be."""
    with intact(f"the run in {path}"):
        return _read_run(Path(path))


def _read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: not a run folder.
        DataIntegrityError: a file is not what was written.
    """
    status = read_status(path)
    config_text = _text(path / "config.yaml")
    metrics = list(records(path / "metrics.jsonl"))
    return Run(
        path=path,
        status=status,
        config=_mapping(path / "config.yaml", config_text),
        config_text=config_text,
        env=json.loads(_text(path / "env.json") or "{}"),
        steps=_last_of([m for m in metrics if "loss" in m and "step" in m], "step"),
        epochs=_last_of([m for m in metrics if m.get("validation")], "epoch"),
        events=list(records(path / "events.jsonl")),
        evaluations={e.split: e for e in _evaluations(path / "evaluation")},
    )


def _text(path: Path) -> str:
    """Return a text file, "" when there is none; what is no UTF-8 in it becomes a replacement character."""
    if not path.exists():
        return ""
    try:
        with open_plain(path, MAX_BYTES) as file:
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _mapping(path: Path, text: str) -> Record:
    value = yaml_file.parse(text, str(path)) if text else {}
    return value if isinstance(value, dict) else {}


def records(path: Path) -> Iterator[Record]:
    """Yield JSON lines; a line that a crash cut short is left out."""
    for line in _text(path).splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _last_of(records: list[Record], name: str) -> list[Record]:
    """Keep the last record of every value of `name`, ordered by it: a resumed run repeats steps it had lost."""
    latest = {r[name]: r for r in records if isinstance(r.get(name), int)}
    return [latest[value] for value in sorted(latest)]


def _evaluations(folder: Path) -> Iterator[Evaluation]:
    for split in SPLITS:
        scores = read_scores(folder / f"{split}.json")
        if scores is not None:
            yield Evaluation(split, scores, _arrays(folder / f"{split}.safetensors"))


def read_scores(path: Path) -> Record | None:
    """Return the scores in evaluation/SPLIT.json, None when there are none.

    Raises:
        DataIntegrityError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        scores = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataIntegrityError(f"{path} is damaged ({error}); run `subspace evaluate` again") from None
    if not isinstance(scores, dict):
        raise DataIntegrityError(f"{path} holds no scores; run `subspace evaluate` again")
    return scores


def _arrays(path: Path) -> Arrays | None:
    if not path.exists():
        return None
    tensors = read_tensors(path)
    missing = {"sample_ids", "labels", "vectors", "neighbours", "neighbour_distances"} - set(tensors)
    if missing:
        raise DataIntegrityError(f"{path} lacks {sorted(missing)[0]}; run `subspace evaluate` again")
    maps, asked = tensors.get("maps"), tensors.get("asked")
    arrays = Arrays(
        sample_ids=tensors["sample_ids"].long().numpy(),
        labels=tensors["labels"].long().numpy(),
        vectors=tensors["vectors"].float().numpy(),
        neighbours=tensors["neighbours"].long().numpy(),
        distances=tensors["neighbour_distances"].float().numpy(),
        maps=None if maps is None else maps.float().numpy(),
        asked=None if asked is None else asked.bool().numpy(),
    )
    if not _agree(arrays):
        raise DataIntegrityError(f"{path} holds arrays that do not fit together; run `subspace evaluate` again")
    return arrays


def _agree(arrays: Arrays) -> bool:
    """Return whether all arrays are about the same images, and neighbours are among them."""
    count, near = len(arrays.vectors), arrays.neighbours
    return (
        arrays.sample_ids.shape == arrays.labels.shape == (count,)
        and arrays.vectors.ndim == near.ndim == 2
        and near.shape == arrays.distances.shape
        and len(near) == count
        and bool(((near >= -1) & (near < count)).all())
        and (arrays.asked is None or arrays.asked.shape == (count,))
        and (arrays.maps is None or (arrays.maps.ndim == 3 and len(arrays.maps) == count))
    )


def score(scores: Record, name: str) -> float | None:
    """Return one score by its short name, None when absent or not a number.

    `recall@1` ... `recall@8` are read from `recall`, `nmi` and `ami` give their mean.
    """
    if name.startswith("recall@"):
        value = (scores.get("recall") or {}).get(name.removeprefix("recall@"))
    else:
        value = scores.get(name)
        value = value.get("mean") if isinstance(value, dict) else value
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
