"""Scores of splits as tables on a terminal; every line says of which protocol it is."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from launch.report import protocols
from launch.report.collect import score
from launch.report.tables import shown
from trainer.headline import headline

LEAVE_ONE_OUT = ("recall@1", "recall@2", "recall@4", "recall@8", "macro_recall_at_1", "map_at_r")


def print_scores(evaluations: dict[str, dict[str, Any]]) -> None:
    """Print the scores of splits, and those of their protocols where there are more than leave-one-out."""
    if all("recall" in found for found in evaluations.values()):
        Console(width=120).print(_whole(evaluations))
    else:
        Console(width=120).print(_plain(evaluations))
    rows = [(split, found) for split, scores in evaluations.items() for found in protocols.protocols_of(scores)]
    if rows:
        Console(width=120).print(_protocols(rows))


def _whole(evaluations: dict[str, dict[str, Any]]) -> Table:
    excluded = {protocols.excluded(found) for found in evaluations.values()} - {""}
    without = "".join(f", without {each}" for each in sorted(excluded))
    table = Table(caption=f"leave-one-out: an image is searched among the others of its split{without}")
    for name in ("split", "images", "classes", "NMI", "AMI", "recall@1", "@2", "@4", "@8", "macro recall@1", "MAP@R"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, found in evaluations.items():
        nmi, ami = (f"{found[name]['mean']:.3f}±{found[name]['std']:.3f}" for name in ("nmi", "ami"))
        texts = [shown(score(found, name)) for name in LEAVE_ONE_OUT]
        table.add_row(split, str(found["num_samples"]), str(found["num_classes"]), nmi, ami, *texts)
    return table


def _plain(evaluations: dict[str, dict[str, Any]]) -> Table:
    """Return the scores of runs that are not about retrieval."""
    table = Table("split", "images", *headline(next(iter(evaluations.values()))))
    for split, found in evaluations.items():
        table.add_row(split, str(found["num_samples"]), *(f"{value:.4f}" for value in headline(found).values()))
    return table


def _protocols(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    columns = [each for each in protocols.columns([found for _, found in rows]) if each != "images"]
    table = Table(caption="one line per protocol: where a query is searched, and in which order")
    for name in ("split", *columns):
        table.add_column(name, justify="left" if name in ("split", *protocols.LABELS) else "right")
    for split, found in rows:
        table.add_row(split, *protocols.texts(found, columns))
    return table
