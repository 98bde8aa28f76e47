"""What a run folder says of a run: scores, subspaces, steps, seconds. Files only, so tables can be made at any time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.errors import DataIntegrityError, UserError
from launch.compare.cells import Cell
from launch.report.collect import SPLITS, read_scores, records, score
from launch.report.tables import metric_name
from launch.status import known_status, timestamp


@dataclass(frozen=True)
class Result:
    """A run that has been completed; `evaluations` are the scores of its splits."""

    cell: Cell
    evaluations: dict[str, dict[str, Any]]
    num_subspaces: int
    steps: int
    wall_s: float

    def score(self, split: str, metric: str) -> float:
        """Return one score.

        Raises:
            DataIntegrityError: the run has none.
        """
        found = score(self.evaluations.get(split, {}), _key(metric))
        if found is None:
            raise DataIntegrityError(
                f"{self.cell.run} has no {metric} of the {split} split; `subspace evaluate` it again"
            )
        return found


def _key(metric: str) -> str:
    return metric.replace("recall_at_", "recall@") if metric.startswith("recall") else metric


def title(metric: str) -> str:
    """Return how a metric is called in tables."""
    return metric_name(_key(metric))


def read_result(cell: Cell) -> Result | None:
    """Return what a run found, None unless it is completed.

    Raises:
        DataIntegrityError: its files are damaged.
        UserError: it was evaluated again, with other images excluded than in the comparison.
    """
    status = known_status(cell.run)
    if status.get("state") != "completed":
        return None
    exclude = cell.config.evaluate.exclude
    evaluations = {
        split: found for split in SPLITS if (found := read_scores(cell.run / "evaluation" / f"{split}.json"))
    }
    for split, found in evaluations.items():
        if found.get("exclude", exclude) != exclude:
            raise UserError(
                f"the {split} scores of {cell.run} are with evaluate.exclude {found['exclude']}, the comparison is with"
                f" {exclude}: `subspace evaluate` it again without that override"
            )
    return Result(
        cell,
        evaluations,
        int(status.get("num_subspaces") or 1),
        int(status.get("step") or 0),
        wall_seconds(cell.run),
    )


def why_missing(cell: Cell) -> str:
    """Return why a run is not completed, as its folder tells it."""
    status = known_status(cell.run)
    if status.get("state") == "failed":
        return str(status.get("reason") or f"exit code {status.get('exit_code')}")
    return {"preempted": "stopped before its end", "running": "running, or killed"}.get(cell.state(), "not run yet")


def wall_seconds(run: Path) -> float:
    """Return the seconds that a run's attempts took, from first to last event of each; pauses between do not count."""
    moments: dict[Any, list[float]] = {}
    for event in records(run / "events.jsonl"):
        when = timestamp(event.get("time"))
        if when is not None and "attempt" in event:
            moments.setdefault(event["attempt"], []).append(when)
    return sum(max(times) - min(times) for times in moments.values())


def split_of(results: Iterable[Result], asked: str) -> str:
    """Return the split that a dataset's runs are compared on: for "auto" test where every run has it."""
    if asked != "auto":
        return asked
    return "test" if all("test" in result.evaluations for result in results) else "validation"
