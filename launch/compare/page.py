"""OUT/compare.html: tables, differences as pictures, the claim and the runs, on one page that needs no other file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from data_shards.files import write_text
from launch import pages
from launch.compare import figures, words
from launch.compare.comparison import Block, Comparison
from launch.compare.results import title
from launch.compare.runner import command
from launch.report.gallery import Gallery, Picture
from launch.spoken import spoken
from launch.yaml_file import read_text


def write(comparison: Comparison, sweep_path: Path) -> Path:
    """Write OUT/compare.html and OUT/plots/*.png; return the path of the page."""
    gallery = Gallery()
    page = render(comparison, sweep_path, gallery)
    gallery.save(comparison.out / "plots")
    write_text(comparison.out / "compare.html", page)
    return comparison.out / "compare.html"


def render(comparison: Comparison, sweep_path: Path, gallery: Gallery) -> str:
    """Return the page; its figures are left in `gallery`."""
    sweep = comparison.sweep
    return pages.render(
        "compare/compare.html.j2",
        ("report/report.css", "compare/compare.css"),
        name=sweep.name,
        lead=lead(comparison),
        caption=words.caption(sweep),
        claim=words.CLAIM,
        difference_caption=words.difference_caption(sweep),
        metrics=[title(metric) for metric in sweep.metrics],
        costs=words.COST_TITLES,
        blocks=[_block(comparison, block, gallery) for block in comparison.blocks],
        missing=words.missing(comparison),
        runs=[_run(comparison, number) for number in range(len(comparison.cells))],
        sweep_file=read_text(sweep_path),
    )


def lead(comparison: Comparison) -> str:
    """Return what is compared, in a sentence or two."""
    sweep = comparison.sweep
    parts = [_number(len(sweep.compared()), "method"), _number(len(sweep.seeds), "seed")]
    parts.append(_number(len(sweep.datasets), "dataset"))
    text = f"{parts[0]}, {parts[1]} and {parts[2]}; differences are to {sweep.title(sweep.reference)}."
    if comparison.missing:
        text += f" {_number(len(comparison.missing), 'run')} of {len(comparison.cells)} missing."
    return text


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _block(comparison: Comparison, block: Block, gallery: Gallery) -> dict[str, Any]:
    sweep = comparison.sweep
    rows = []
    for row in block.rows:
        scores = [(words.mean_std(row.scores.get(metric)), row.marks[metric]) for metric in sweep.metrics]
        differences = [words.difference(row.differences.get(metric)) for metric in sweep.metrics]
        rows.append(
            {
                "title": words.row_title(comparison, row),
                "is_reference": row.method == sweep.reference,
                "scores": scores,
                "costs": words.costs(row),
                "differences": differences,
            }
        )
    return {
        "id": block.dataset,
        "heading": block.title,
        "split": block.split,
        "rows": rows,
        "picture": _picture(comparison, block, gallery),
        "claims": words.claim_rows(sweep, block),
        "notes": block.notes,
    }


def _picture(comparison: Comparison, block: Block, gallery: Gallery) -> Picture | None:
    sweep = comparison.sweep
    told = "; ".join(
        f"{row.title}: {', '.join(f'{title(m)} {words.difference(found)}' for m, found in row.differences.items())}"
        for row in block.rows
        if row.differences
    )
    return gallery.add(
        f"differences-{block.dataset}",
        partial(figures.difference_figure, block, sweep.metrics),
        f"Differences to {sweep.title(sweep.reference)} with their intervals. {told}",
        "Dots: differences, lines: their intervals; blue is better, orange worse, grey may be either.",
        wide=True,
    )


def _run(comparison: Comparison, number: int) -> dict[str, str]:
    cell = comparison.cells[number]
    result = comparison.results.get(cell.name)
    return {
        "name": cell.name,
        "state": "completed" if result else "missing",
        "subspaces": str(result.num_subspaces) if result else "",
        "steps": f"{result.steps:,}" if result else "",
        "wall": spoken(result.wall_s) if result else "",
        "command": " ".join(["subspace", *command(cell)[3:]]),
    }
