"""The tables as Markdown and CSV, and all figures as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from launch.compare import words
from launch.compare.comparison import COSTS, Block, Comparison, Row
from launch.compare.results import title, why_missing
from launch.compare.summary import Mark, Summary

COLUMNS = (
    *("dataset", "split", "method", "title", "quantity", "seeds", "mean", "std", "mark"),
    *("difference", "low", "high", "paired_seeds"),
)
_MARKS: dict[Mark, str] = {"best": "**{}**", "second": "_{}_", "": "{}"}


def markdown(comparison: Comparison) -> str:
    """Return the tables of all datasets, the claim and the missing runs."""
    sweep = comparison.sweep
    parts = [f"# {sweep.name}", words.caption(sweep)]
    for block in comparison.blocks:
        parts += [f"## {_escaped(words.heading(block))}", _score_table(comparison, block)]
        if words.has_differences(block):
            parts += [words.difference_caption(sweep), _difference_table(comparison, block)]
        parts += [_escaped(note) for note in block.notes]
        parts += _claim(comparison, block)
    if comparison.missing:
        parts.append("Missing runs:")
        parts.append("\n".join(f"- {name}: {_escaped(reason)}" for name, reason in words.missing(comparison)))
    return "\n\n".join(parts) + "\n"


def _score_table(comparison: Comparison, block: Block) -> str:
    metrics = comparison.sweep.metrics
    head = ["method", *(title(metric) for metric in metrics), *words.COST_TITLES]
    body = [[_escaped(words.row_title(comparison, row)), *_score_cells(metrics, row)] for row in block.rows]
    return _table(head, body)


def _score_cells(metrics: Sequence[str], row: Row) -> Iterator[str]:
    for metric in metrics:
        yield _MARKS[row.marks[metric]].format(words.mean_std(row.scores.get(metric)))
    yield from words.costs(row)


def _difference_table(comparison: Comparison, block: Block) -> str:
    metrics = comparison.sweep.metrics
    others = [row for row in block.rows if row.method != comparison.sweep.reference]
    body = [[_escaped(row.title), *(words.difference(row.differences.get(m)) for m in metrics)] for row in others]
    return _table(["method", *(title(metric) for metric in metrics)], body)


def _claim(comparison: Comparison, block: Block) -> list[str]:
    rows = words.claim_rows(comparison.sweep, block)
    lines = [f"- {_escaped(question)} **{answer}**" for question, answer, _ in rows]
    return [f"{words.CLAIM}?", "\n".join(lines)] if lines else []


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "|*_`[]<>\\" else letter for letter in text)


def csv_text(comparison: Comparison) -> str:
    """Return a line per dataset, method and quantity (scores, then costs); what is unknown is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for block in comparison.blocks:
        for row in block.rows:
            place = {"dataset": block.dataset, "split": block.split, "method": row.method, "title": row.title}
            for metric in comparison.sweep.metrics:
                found = row.differences.get(metric)
                others = {} if found is None else {**asdict(found), "paired_seeds": found.num_seeds}
                others.pop("num_seeds", None)
                writer.writerow(
                    {**place, **_numbers(metric, row.scores.get(metric)), "mark": row.marks[metric], **others}
                )
            writer.writerows({**place, **_numbers(cost, row.costs.get(cost))} for cost in COSTS)
    return stream.getvalue()


def _numbers(name: str, found: Summary | None) -> dict[str, Any]:
    if found is None:
        return {"quantity": name, "seeds": 0}
    return {"quantity": name, "seeds": len(found.values), "mean": found.mean, "std": found.std}


def as_json(comparison: Comparison) -> str:
    """Return every figure of every run and table as JSON; run folders are relative to the comparison's."""
    runs = []
    for cell in comparison.cells:
        result = comparison.results.get(cell.name)
        place = {"dataset": cell.dataset, "method": cell.method, "seed": cell.seed}
        place |= {"run": cell.run.relative_to(comparison.out).as_posix(), "words": list(cell.words)}
        if result is None:
            runs.append(
                {**place, "state": cell.state(), "reason": comparison.reasons.get(cell.name) or why_missing(cell)}
            )
        else:
            costs = {name: getattr(result, name) for name in COSTS}
            # Names of a thousand classes, twice in every run, would be nine tenths of the file.
            figures = {
                split: {key: value for key, value in found.items() if key != "class_names"}
                for split, found in result.evaluations.items()
            }
            runs.append({**place, "state": "completed", **costs, "evaluations": figures})
    sweep = comparison.sweep.model_dump(mode="json", by_alias=True)
    tables = [asdict(block) for block in comparison.blocks]
    return json.dumps({"sweep": sweep, "runs": runs, "tables": tables}, indent=1, allow_nan=False) + "\n"
