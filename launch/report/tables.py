"""The numbers of the page as rows of text: scores, subspaces, growths, environment.

Legend: K subspaces; a score is None where it was not computed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from launch import palette
from launch.report import figures, lineage
from launch.report.collect import SPLITS, Record, Run, score
from launch.spoken import spoken
from launch.status import timestamp

METRICS = (
    ("recall@1", "recall@1", "queries whose nearest neighbour has their class"),
    ("recall@2", "recall@2", "… with at least one such image among the 2 nearest"),
    ("recall@4", "recall@4", "… among the 4 nearest"),
    ("recall@8", "recall@8", "… among the 8 nearest"),
    ("macro_recall_at_1", "macro recall@1", "recall@1 averaged over classes: rare ones weigh as much as common ones"),
    ("map_at_r", "MAP@R", "mean average precision at R, R = other images of the query's class"),
    ("r_precision", "R-precision", "share of the query's class among its R nearest"),
    ("nmi", "NMI", "agreement of k-means clusters with the classes (mean ± std over seeds)"),
    ("ami", "AMI", "the same, adjusted for chance"),
    ("dice", "Dice", "overlap of the predicted mask with the true one (mean ± std over images)"),
    ("iou", "IoU", "the same, as intersection over union"),
    ("loss", "loss", "the objective's own loss on fixed batches"),
)


UNKNOWN = "\N{EN DASH}"


def metric_name(key: str) -> str:
    return next((name for known, name, _ in METRICS if known == key), key)


def shown(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def metric_rows(run: Run) -> list[Record]:
    """Return one row per known metric: name, definition, a text per split in the order of SPLITS."""
    splits = [run.evaluations[s] for s in SPLITS if s in run.evaluations]
    rows = []
    for key, name, meaning in METRICS:
        values = [score(e.scores, key) for e in splits]
        if any(v is not None for v in values):
            spreads = [e.scores[key].get("std") if isinstance(e.scores.get(key), dict) else None for e in splits]
            texts = [_with_spread(v, s) for v, s in zip(values, spreads, strict=True)]
            rows.append({"name": name, "meaning": meaning, "values": texts})
    return rows


def _with_spread(value: float | None, spread: object) -> str:
    return shown(value) + (f" ± {spread:.3f}" if value is not None and isinstance(spread, (int, float)) else "")


def subspace_rows(run: Run) -> list[Record]:
    """Return one row per subspace of the final model and one for the whole: width, training images, own scores."""
    if run.pictured is None:
        return []
    scores = run.pictured.scores
    blocks = scores.get("per_subspace") or []
    widths = scores.get("widths") or [b.get("width") for b in blocks]
    counts = _last_counts(run, len(widths))
    if len(widths) < 2:
        return []
    rows = []
    for k, width in enumerate(widths):
        block = blocks[k] if k < len(blocks) and isinstance(blocks[k], dict) else {}
        share = counts[k] / max(sum(counts), 1) if counts else None
        rows.append(
            {
                "name": f"S{k + 1}",
                "colour": palette.subspace_colour(k),
                "width": width,
                "share": UNKNOWN if share is None else f"{100 * share:.0f} %",
                "recall": shown(score(block, "recall@1" if "recall" in block else "recall_at_1")),
                "nmi": shown(score(block, "nmi")),
                "map": shown(score(block, "map_at_r")),
            }
        )
    whole = {"recall": "recall@1", "nmi": "nmi", "map": "map_at_r"}
    whole = {name: shown(score(scores, key)) for name, key in whole.items()}
    return [*rows, {"name": "all", "colour": "", "width": sum(widths), "share": "", **whole}]


def information_rows(run: Run) -> tuple[list[str], list[Record]]:
    """Return the factors of the images, and per subspace (last: the whole) the bits that it tells of each.

    `share` is a cell's part of the three bits that eight levels have.
    """
    scores = run.pictured.scores if run.pictured is not None else {}
    whole, blocks = scores.get("information") or {}, scores.get("per_subspace") or []
    if not isinstance(whole, dict) or not whole:
        return [], []
    names = sorted(whole)
    told = [(f"S{k + 1}", palette.subspace_colour(k), block.get("information") or {}) for k, block in enumerate(blocks)]
    lines = [*(told if len(told) > 1 else []), ("all", "", whole)]
    return names, [
        {"name": name, "colour": colour, "cells": [_cell(found.get(factor)) for factor in names]}
        for name, colour, found in lines
    ]


def _cell(bits: object) -> Record:
    known = float(bits) if isinstance(bits, (int, float)) else None
    return {"text": shown(known, 2), "share": round(min(max(known or 0.0, 0.0) / 3, 1.0), 3)}


def _last_counts(run: Run, num_subspaces: int) -> list[int]:
    """Return the cluster sizes that the kept weights were trained on: the last of as many clusters as subspaces."""
    best = figures.best_epoch(run)
    fitting = [e for e in run.named("recluster") if len(e.get("counts") or []) == num_subspaces]
    before = [e for e in fitting if best is None or (e.get("epoch") or 0) < best.epoch]
    return list((before or fitting)[-1]["counts"]) if fitting else []


def growth_rows(run: Run) -> list[Record]:
    """Return one row per growth: when, which subspace was split, into what."""
    return [
        {
            "epoch": f"{split.epoch:.0f}",
            "parent": f"S{split.parent + 1}",
            "before": split.kept + split.given,
            "kept": f"S{split.parent + 1} ({split.kept})",
            "given": f"S{split.child + 1} ({split.given})",
            "subspaces": split.child + 1,
            "undone": split.undone,
        }
        for split in lineage.splits(run.events)
    ]


def duration_s(run: Run) -> float | None:
    """Return the seconds from the first event to the last, pauses between attempts included."""
    moments = [m for m in (timestamp(e.get("time")) for e in run.events) if m is not None]
    return max(moments) - min(moments) if len(moments) > 1 else None


def fact_rows(run: Run) -> list[tuple[str, str]]:
    """Return what a reader needs to do the run again, as (name, text)."""
    speed = [s["images_per_s"] for s in run.steps if isinstance(s.get("images_per_s"), (int, float))]
    status = run.status
    facts: list[tuple[str, object]] = [
        ("state", status["state"] + (f" ({status['reason']})" if status.get("reason") else "")),
        ("seed", run.seed),
        ("steps", status.get("step")),
        ("ranks", status.get("world_size")),
        ("restarts", len(run.named("restart"))),
        ("preemptions", len(run.named("preempted"))),
        ("wall time", spoken(duration) if (duration := duration_s(run)) is not None else None),
        ("median speed", f"{np.median(speed):,.0f} images/s" if speed else None),
        *flattened({name: value for name, value in run.env.items() if name != "command"}),
    ]
    # What versions and fingerprint both say is told once.
    return list(dict.fromkeys((name, str(value)) for name, value in facts if value not in (None, "", [])))


def command(run: Run) -> str:
    """Return the command that made the run, as a shell would take it."""
    given = run.env.get("command") or ""
    return shlex.join(str(part) for part in given) if isinstance(given, list) else str(given)


def flattened(mapping: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every leaf of a nested mapping."""
    for key, value in mapping.items():
        name = str(key).replace("_", " ") if str(key).islower() else str(key)
        if isinstance(value, Mapping):
            yield from flattened(value)
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(str(v) for v in value) or "none"
        else:
            yield name, UNKNOWN if value is None else str(value)
