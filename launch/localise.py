"""`subspace localise`: landmarks marked in one image, found in others by a network that was trained without labels.

Legend: N queries, L landmarks, S x S pixels of the evaluation image.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_shards.augment import AugmentConfig
from data_shards.augment_batch import normalise
from data_shards.errors import UserError
from data_shards.files import write_text
from data_shards.reader import SplitReader
from launch import build
from launch.seen import Seen, of_row, seen, shards_of
from launch.trained import alone, config_of, load
from trainer.heads.dense import DenseEmbedding
from trainer.localisation import Window, likeness, peaks
from trainer.model import EmbeddingModel

Points = npt.NDArray[np.float64]  # (L, 2) x and y
NUM_PICTURES = 11  # with the marked image three rows of four


@dataclass(frozen=True)
class Found:
    """What was found in one query: places (L, 2) in the original, likenesses (L,), heat (L, S, S), truth or None."""

    query: Seen
    places: Points
    likenesses: npt.NDArray[np.float64]
    heat: npt.NDArray[np.float32]
    truth: Points | None

    @property
    def errors(self) -> npt.NDArray[np.float64] | None:
        """(L,) distances to the truth in pixels of the original."""
        return None if self.truth is None else np.linalg.norm(self.places - self.truth, axis=1)


def localise(
    run: Path,
    support: str,
    queries: Sequence[str],
    at: Sequence[tuple[float, float]],
    out: Path,
    split: str = "validation",
    mm_per_pixel: float | None = None,
) -> dict[str, Any]:
    """Find what is marked in `support` in the queries, or in all other images of the split; write OUT, return scores.

    OUT/landmarks.csv has a line per query and landmark, OUT/landmarks.json the scores, OUT/landmarks.png the first
    queries. Places are in pixels of the original, centres counted from 0; `at` are those in the support image, by
    default its landmarks in the shards.

    Raises:
        UserError: no run of local discrimination, no such image, no landmarks, or a place outside of the image.
    """
    config = config_of(run)
    folder, transform = shards_of(config), build.transform(config)
    reader = folder.split(split)
    marked = seen(support, folder, split, transform)
    points = _marked(marked, at, reader)
    others: Iterable[Seen] = (seen(word, folder, split, transform) for word in queries)
    if not queries:
        others = (of_row(reader, row, transform) for row in range(len(reader)) if row != marked.row)
    with alone(config):
        network = load(run, config).network
        found = list(_search(network, transform, marked, points, others, reader))
    if not found:
        raise UserError(f"the {split} split holds no other image to search")
    return _written(out, marked, points, found, mm_per_pixel)


def _marked(support: Seen, at: Sequence[tuple[float, float]], reader: SplitReader) -> Points:
    """Return the landmarks of the support image, (L, 2) in its original."""
    known = _known(support, reader)
    if at:
        return np.array(at, dtype=np.float64)
    if known is None:
        raise UserError("--at: say where the landmark is in the support image, as x,y in pixels")
    return known


def _known(image: Seen, reader: SplitReader) -> Points | None:
    """Return the landmarks that the shards hold of an image: factors landmark0_x, landmark0_y, ..."""
    names = [name for name in reader.factors if name.startswith("landmark")]
    if image.row is None or not names:
        return None
    count = len(names) // 2
    return np.array([[reader.factors[f"landmark{k}_{axis}"][image.row] for axis in "xy"] for k in range(count)])


@torch.no_grad()
def _search(
    network: EmbeddingModel,
    transform: AugmentConfig,
    support: Seen,
    points: Points,
    queries: Iterable[Seen],
    reader: SplitReader,
) -> Iterable[Found]:
    if not isinstance(network.head, DenseEmbedding):
        raise UserError("localise needs a network with a vector for every pixel: train one with model.head.name dense")
    window = Window.for_image(transform.size)
    inside = np.rint([support.evaluated(*point) for point in points]).astype(np.int64)
    marked = _vectors(network, transform, support)[0]
    for query in queries:
        try:
            maps = likeness(
                marked, torch.from_numpy(inside).to(marked.device), _vectors(network, transform, query), window
            )
        except ValueError as error:
            raise UserError(f"--at: {error}") from None
        places = np.array([query.original(*place) for place in peaks(maps)[0].tolist()])
        truth = _known(query, reader)
        truth = truth if truth is not None and len(truth) == len(points) else None
        yield Found(query, places, maps[0].amax(dim=(1, 2)).double().cpu().numpy(), maps[0].cpu().numpy(), truth)


def _vectors(network: EmbeddingModel, transform: AugmentConfig, image: Seen) -> torch.Tensor:
    """Return the unit vectors (1, d, S, S) of an image's pixels."""
    assert isinstance(network.head, DenseEmbedding)
    device = next(network.parameters()).device
    planes = torch.from_numpy(np.ascontiguousarray(image.pixels.transpose(2, 0, 1)))[None]
    vectors = network.head.pixels(network.levels(normalise(planes.to(device), transform))).vectors
    if vectors.shape[-1] != transform.size:
        vectors = torch.nn.functional.interpolate(vectors, (transform.size, transform.size), mode="bilinear")
    return vectors


def _written(
    out: Path, support: Seen, points: Points, found: list[Found], mm_per_pixel: float | None
) -> dict[str, Any]:
    from launch.report.landmarks import landmarks_picture

    scores = _scores(support, points, found, mm_per_pixel)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "landmarks.csv", _table(found, mm_per_pixel))
        write_text(out / "landmarks.json", json.dumps(scores, indent=1) + "\n")
        (out / "landmarks.png").write_bytes(landmarks_picture(support, points, found[:NUM_PICTURES]))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    return scores


def _scores(support: Seen, points: Points, found: list[Found], mm_per_pixel: float | None) -> dict[str, Any]:
    """Return the errors where places are known, per landmark: in pixels, shares of the side and millimetres."""
    scores: dict[str, Any] = {"support": support.name, "num_queries": len(found), "points": points.tolist()}
    known = [(each.errors, _side(each.query)) for each in found if each.errors is not None]
    if known:
        errors = np.stack([errors for errors, _ in known])  # (N, L)
        shares = errors / np.array([side for _, side in known])[:, None]
        scores["num_known"] = len(known)
        scores["landmarks"] = [
            {
                "median_px": float(np.median(errors[:, k])),
                "mean_px": float(errors[:, k].mean()),
                "p95_px": float(np.percentile(errors[:, k], 95)),
                "median_share_of_side": float(np.median(shares[:, k])),
                **({} if mm_per_pixel is None else {"median_mm": float(np.median(errors[:, k]) * mm_per_pixel)}),
            }
            for k in range(len(points))
        ]
    return scores


def _side(image: Seen) -> float:
    return image.box[2] - image.box[0]


def _table(found: list[Found], mm_per_pixel: float | None) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["query", "landmark", "x", "y", "likeness", "true_x", "true_y", "error_px", "error_mm"])
    for each in found:
        for k, (x, y) in enumerate(each.places):
            row: list[Any] = [each.query.name, k, f"{x:.2f}", f"{y:.2f}", f"{each.likenesses[k]:.4f}"]
            if each.truth is not None and each.errors is not None:
                error = each.errors[k]
                mm = "" if mm_per_pixel is None else f"{error * mm_per_pixel:.3f}"
                row += [f"{each.truth[k, 0]:.2f}", f"{each.truth[k, 1]:.2f}", f"{error:.3f}", mm]
            rows.writerow(row + [""] * (9 - len(row)))
    return text.getvalue()
