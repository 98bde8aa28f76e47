"""All numbers of a comparison, from the run folders: what tables, page and JSON show.

A missing run leaves its seed out of its method's mean; a method without any has an empty row. Differences are taken
over the seeds that the method and the reference have both completed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.errors import UserError
from launch.compare.bootstrap import Interval, interval, paired, resampled_scores
from launch.compare.cells import Cell
from launch.compare.claim import Verdict, verdicts
from launch.compare.queries import Floats, Queries, read_queries
from launch.compare.results import Result, read_result, split_of
from launch.compare.summary import Mark, Summary, marks, summarised
from launch.compare.sweep_file import Sweep

COSTS = ("num_subspaces", "steps", "wall_s")
Resampled = dict[tuple[str, tuple[int, ...]], dict[str, Floats]]  # by method and seeds


@dataclass(frozen=True)
class Row:
    """A method on a dataset; a score that no run gave is not in the mappings."""

    method: str
    title: str
    num_seeds: int
    scores: dict[str, Summary]
    marks: dict[str, Mark]
    costs: dict[str, Summary]
    differences: dict[str, Interval]


@dataclass(frozen=True)
class Block:
    """A dataset: the split that is compared, a row per method, what a reader must know."""

    dataset: str
    title: str
    split: str
    rows: list[Row]
    verdicts: list[Verdict]
    notes: list[str] = field(default_factory=list)

    def row(self, method: str) -> Row:
        return next(row for row in self.rows if row.method == method)


@dataclass(frozen=True)
class Comparison:
    """A sweep and what came of it."""

    sweep: Sweep
    out: Path
    cells: Sequence[Cell]
    results: dict[str, Result]  # by the name of the cell
    reasons: dict[str, str]  # why a run is missing, where that is known
    blocks: list[Block]

    @property
    def missing(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.name not in self.results]


def compared(
    sweep: Sweep, out: Path, cells: Sequence[Cell], reasons: dict[str, str], tell: Callable[[str], None]
) -> Comparison:
    """Read all runs and compare them; `tell` hears what takes its time.

    Raises:
        DataIntegrityError: files of a completed run are missing or damaged.
    """
    results = {cell.name: found for cell in cells if (found := read_result(cell)) is not None}
    blocks = []
    for dataset in sweep.datasets:
        own = [
            results[cell.name]
            for cell in cells
            if cell.dataset == dataset and cell.name in results and cell.method not in sweep.steps
        ]
        blocks.append(_block(sweep, dataset, own, tell))
    return Comparison(sweep, out, cells, results, reasons, blocks)


def _block(sweep: Sweep, dataset: str, results: Sequence[Result], tell: Callable[[str], None]) -> Block:
    split = split_of(results, sweep.split)
    by_method = {m: {r.cell.seed: r for r in results if r.cell.method == m} for m in sweep.compared()}
    scores = {method: _summaries(sweep, split, runs) for method, runs in by_method.items()}
    marked = {m: marks({name: found[m].mean for name, found in scores.items() if m in found}) for m in sweep.metrics}
    queries, notes = _queries(sweep, split, results, tell)
    if queries:
        tell(f"{dataset}: resampling the differences to {sweep.title(sweep.reference)}")
    memory: Resampled = {}
    rows = [
        Row(
            method,
            sweep.title(method),
            len(by_method[method]),
            found,
            {metric: marked[metric].get(method, "") for metric in sweep.metrics},
            _costs(by_method[method]),
            _differences(sweep, dataset, method, scores, queries, memory),
        )
        for method, found in scores.items()
    ]
    return Block(dataset, sweep.title(dataset), split, rows, verdicts(sweep, scores), notes)


def _summaries(sweep: Sweep, split: str, runs: dict[int, Result]) -> dict[str, Summary]:
    found = {m: summarised({seed: run.score(split, m) for seed, run in runs.items()}) for m in _needed(sweep)}
    return {metric: summary for metric, summary in found.items() if summary is not None}


def _needed(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys([*sweep.metrics, *(sweep.claim.metrics if sweep.rivals() else ())]))


def _costs(runs: dict[int, Result]) -> dict[str, Summary]:
    found = {name: summarised({seed: float(getattr(r, name)) for seed, r in runs.items()}) for name in COSTS}
    return {name: summary for name, summary in found.items() if summary is not None}


def _queries(
    sweep: Sweep, split: str, results: Sequence[Result], tell: Callable[[str], None]
) -> tuple[dict[str, dict[int, Queries]], list[str]]:
    """Return {method: {seed: values of all images}}, or nothing and why."""
    found: dict[str, dict[int, Queries]] = {}
    if not any(result.cell.method != sweep.reference for result in results):
        return {}, []
    for result in results:
        try:
            found.setdefault(result.cell.method, {})[result.cell.seed] = read_queries(result.cell.run, split, tell)
        except UserError as error:
            return {}, [f"There are no intervals: {error}."]
    if not paired([run for runs in found.values() for run in runs.values()]):
        return {}, ["There are no intervals: the methods were not evaluated on the same images."]
    return found, []


def _differences(
    sweep: Sweep,
    dataset: str,
    method: str,
    scores: dict[str, dict[str, Summary]],
    queries: dict[str, dict[int, Queries]],
    memory: Resampled,
) -> dict[str, Interval]:
    ours, theirs = queries.get(method, {}), queries.get(sweep.reference, {})
    seeds = tuple(sorted(set(ours) & set(theirs)))
    if method == sweep.reference or not seeds:
        return {}
    for name in (method, sweep.reference):
        if (name, seeds) not in memory:
            runs = {seed: queries[name][seed] for seed in seeds}
            memory[name, seeds] = resampled_scores(runs, sweep.metrics, dataset)
    found: dict[str, Interval] = {}
    for metric in sweep.metrics:
        values, base = scores[method][metric].values, scores[sweep.reference][metric].values
        difference = sum(values[seed] - base[seed] for seed in seeds) / len(seeds)
        own, its = memory[method, seeds][metric], memory[sweep.reference, seeds][metric]
        found[metric] = interval(own, its, difference, len(seeds))
    return found
