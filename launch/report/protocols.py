"""The table of protocols: the same vectors searched in other galleries and orders, a line each that says which."""

from __future__ import annotations

from collections.abc import Sequence

from launch.report.collect import SPLITS, Record, Run, score
from launch.report.tables import metric_name, shown

GALLERIES = {"leave_one_out": "leave-one-out", "train": "training images"}
EXCLUDED = {"group": "images of its own group", "scan": "patches of its own scan"}
LABELS = ("gallery", "images", "re-ranked", "left out")
METRICS = ("recall@1", "macro_recall_at_1", "map_at_r")
EXTRA = ("images", "macro recall@1", "η_p", "η_W")
SCANS = {"eta_p": "η_p", "eta_w": "η_W", "eta_total": "η_total"}


def protocols_of(scores: Record) -> list[Record]:
    """Return the protocols of a split; none where there is plain leave-one-out only, which the scores are of anyway."""
    found = [each for each in scores.get("protocols") or [] if isinstance(each, dict)]
    plain = len(found) == 1 and found[0].get("gallery") == "leave_one_out" and not found[0].get("scans")
    return [] if plain else found


def excluded(scores: Record) -> str:
    """Return what is left out of a query's gallery besides itself, "" for nothing."""
    return EXCLUDED.get(str(scores.get("exclude")), "")


def columns(found: Sequence[Record]) -> list[str]:
    """Return the headings that some protocols need."""
    left_out = any(excluded(each) for each in found)
    scans = list(SCANS.values()) if any(each.get("scans") for each in found) else []
    return [*LABELS[: None if left_out else -1], *(metric_name(each) for each in METRICS), *scans]


def texts(found: Record, headings: Sequence[str]) -> list[str]:
    """Return the cells of a protocol under the headings."""
    scans = found.get("scans")
    cells = {
        "gallery": GALLERIES.get(str(found.get("gallery")), str(found.get("gallery"))),
        "images": str(found.get("num_gallery", "")),
        "re-ranked": "no" if _order(found) == "none" else _order(found),
        "left out": f"own {found['exclude']}" if excluded(found) else "nothing",
        **{metric_name(name): shown(score(found, name)) for name in METRICS},
        **{name: shown(score(scans if isinstance(scans, dict) else {}, key)) for key, name in SCANS.items()},
    }
    return [cells[heading] for heading in headings]


def _order(found: Record) -> str:
    return str(found.get("rerank", "none")).replace("_", "-")


def _arguments(found: Record) -> str:
    """Return how a re-ranking was set, "" where there is nothing to set."""
    arguments = found.get("rerank_arguments")
    told = [f"{name} {value}" for name, value in arguments.items()] if isinstance(arguments, dict) else []
    return f"{_order(found)}: {', '.join(told).replace('_', ' ')}" if told else ""


def protocol_table(run: Run) -> Record | None:
    """Return {"columns", "rows", "orders": how they were re-ranked}, None where leave-one-out says it all."""
    found = [(split, each) for split in SPLITS if split in run.evaluations for each in _of(run, split)]
    if not found:
        return None
    headings = columns([each for _, each in found])
    rows = [{"split": split, "cells": texts(each, headings)} for split, each in found]
    orders = sorted({told for _, each in found if (told := _arguments(each))})
    return {"columns": [(_title(heading), _kind(heading)) for heading in headings], "rows": rows, "orders": orders}


def _title(heading: str) -> str:
    return heading.capitalize() if heading in LABELS else heading


def _kind(heading: str) -> str:
    """Return the classes of a column: numbers, and what a narrow page leaves out."""
    kinds = {"number": heading == "images" or heading not in LABELS, "extra": heading in EXTRA}
    return " ".join(kind for kind, holds in kinds.items() if holds)


def _of(run: Run, split: str) -> list[Record]:
    return protocols_of(run.evaluations[split].scores)
