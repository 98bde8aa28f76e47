"""The state machine of a run: what each epoch does, what it reported, and when the embedding grows.

All state is the list of reports, everything else is folded from it, so a controller rebuilt from its journal is the
controller that died. Attempts order the incarnations of the ranks: a message of an older attempt is refused. A new
attempt that begins an epoch again (it resumed from an earlier checkpoint) supersedes what was reported from that
epoch on; within an attempt, a repeated report returns the recorded decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import StaleMessage
from cluster.growth import Change, EpochReport, Growth, GrowthPolicy, NoGrowth, Rollback, change_from_json, progress
from cluster.journal import Journal
from cluster.plan import EpochPlan, PlanConfig, phase_of, plan_epoch
from data_shards.errors import DataIntegrityError, UserError, intact

SNAPSHOT_VERSION = 1


@dataclass(frozen=True)
class ControllerConfig:
    """`widths` before any growth; `metric` names the watched score, dotted ("nmi", "recall.1"; a mean is taken)."""

    plan: PlanConfig
    widths: tuple[int, ...]
    growth: GrowthPolicy = field(default_factory=NoGrowth)
    seed: int = 0
    metric: str = "nmi"


@dataclass(frozen=True)
class _Record:
    """One reported epoch and the growth, or its rollback, that followed it."""

    epoch: int
    metric: float | None
    growth: Change | None

    def to_json(self) -> dict[str, Any]:
        growth = None if self.growth is None else self.growth.to_json()
        return {"epoch": self.epoch, "metric": self.metric, "growth": growth}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> _Record:
        growth = None if data["growth"] is None else change_from_json(data["growth"])
        metric = None if data["metric"] is None else float(data["metric"])
        return cls(int(data["epoch"]), metric, growth)


def read_metric(metrics: Mapping[str, Any], name: str) -> float | None:
    """Return the number at a dotted name, or its "mean"; None when it is missing or not finite."""
    value: Any = metrics
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        value = value.get("mean")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


class ControllerCore:
    """Plans and decides; JSON in and out of `snapshot` and the journal. Without a journal, state lives in memory."""

    def __init__(self, config: ControllerConfig, journal: Journal | None = None) -> None:
        self._config, self._journal = config, journal
        self._records: list[_Record] = []
        self._attempt, self._fresh = 0, True
        if journal is not None:
            with intact(f"the controller's journal {journal.path}"):
                for event in journal.events:
                    self._replay(event)

    @property
    def attempt(self) -> int:
        """The latest attempt that has begun, 0 before the first."""
        return self._attempt

    # ---- messages of the ranks -----------------------------------------------------------------------------------

    def begin(self, attempt: int) -> None:
        """Open an attempt; repeating it is fine. Raises StaleMessage when a later attempt has begun."""
        if attempt < self._attempt:
            raise StaleMessage(f"Attempt {attempt} was superseded by attempt {self._attempt}.")
        if attempt > self._attempt:
            self._commit({"kind": "begin", "attempt": attempt})

    def plan(self, epoch: int, attempt: int) -> EpochPlan:
        """Return the plan of an epoch; asking twice gives the same plan.

        Raises StaleMessage for another attempt, UserError for an epoch that does not follow the reports.
        """
        self._check_attempt(attempt)
        self._rewind(epoch)
        self._check_epoch(epoch)
        before = [r for r in self._records if r.epoch < epoch]
        widths, version = self._partition(before)
        grew = bool(before) and before[-1].growth is not None
        return plan_epoch(self._config.plan, epoch, widths, version, grew)

    def report(
        self,
        epoch: int,
        attempt: int,
        metrics: Mapping[str, Any],
        scores: list[float] | None,
        version: int | None = None,
    ) -> Change | None:
        """Record the end of an epoch and return the change that follows it, decided once and journaled first.

        A repeated report returns the recorded decision. Raises StaleMessage for another attempt or partition version.
        """
        self._check_attempt(attempt)
        for record in self._records:
            if record.epoch == epoch and not self._fresh:
                return record.growth
        self._rewind(epoch)
        self._check_epoch(epoch)
        widths, current = self._partition(self._records)
        if version is not None and version != current:
            raise StaleMessage(f"Epoch {epoch} was reported for partition {version}, but the run is at {current}.")
        metric = read_metric(metrics, self._config.metric)
        history = [*self._history(), EpochReport(epoch, metric)]
        growth = None
        if phase_of(self._config.plan, epoch) == "subspace":
            may_grow = self._growth_can_train(epoch)
            growth = self._config.growth.decide(history, widths, scores, self._config.seed, may_grow)
        self._commit({"kind": "report", "attempt": attempt, **_Record(epoch, metric, growth).to_json()})
        return growth

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON, for a checkpoint: nothing in it depends on attempts or wall time."""
        widths, version = self._partition(self._records)
        state = progress(self._history(), getattr(self._config.growth, "min_delta", 0.0))
        found = state.best_epoch >= 0
        return {
            "schema_version": SNAPSHOT_VERSION,
            "initial_widths": list(self._config.widths),
            "widths": list(widths),
            "version": version,
            "best": {"epoch": state.best_epoch, "metric": state.best} if found else None,
            "explore": state.may_explore,
            "records": [record.to_json() for record in self._records],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Take the state of a checkpoint; what was reported after it is superseded.

        Raises DataIntegrityError for a snapshot that does not fit this run.
        """
        self._commit({"kind": "restore", "snapshot": self._checked(snapshot)})

    # ---- state ---------------------------------------------------------------------------------------------------

    def _commit(self, event: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal.append(event)
        self._replay(event)

    def _replay(self, event: Mapping[str, Any]) -> None:
        """The only place where state changes: live and from the journal alike."""
        kind = event["kind"]
        if kind == "begin":
            self._attempt, self._fresh = int(event["attempt"]), True
        elif kind == "report":
            self._records.append(_Record.from_json(event))
            self._fresh = False
        elif kind == "rewind":
            self._records = [r for r in self._records if r.epoch < event["epoch"]]
            self._fresh = False
        elif kind == "restore":
            self._records = [_Record.from_json(r) for r in event["snapshot"]["records"]]
            self._fresh = False
        else:
            raise DataIntegrityError(f"The controller's journal holds an event of unknown kind '{kind}'.")

    def _rewind(self, epoch: int) -> None:
        """The first message of an attempt tells where it starts: later reports belong to a timeline that died."""
        if self._fresh:
            self._commit({"kind": "rewind", "attempt": self._attempt, "epoch": epoch})

    def _checked(self, snapshot: Mapping[str, Any]) -> dict[str, Any]:
        with intact("the controller's snapshot in the checkpoint"):
            known = snapshot["schema_version"] == SNAPSHOT_VERSION
            initial = tuple(snapshot["initial_widths"])
            records = [_Record.from_json(record) for record in snapshot["records"]]
        if not known or initial != self._config.widths:
            raise DataIntegrityError(
                f"The checkpoint is of a run that began with widths {initial}, this run with {self._config.widths}; "
                "use the configuration that wrote it."
            )
        return {**snapshot, "records": [record.to_json() for record in records]}

    def _check_attempt(self, attempt: int) -> None:
        if attempt != self._attempt:
            raise StaleMessage(f"A message of attempt {attempt} was refused: the run is at attempt {self._attempt}.")

    def _check_epoch(self, epoch: int) -> None:
        last = self._records[-1].epoch if self._records else None
        if epoch < 0 or (last is not None and epoch > last + 1):
            expected = 0 if last is None else last + 1
            raise UserError(f"The controller was asked about epoch {epoch}, but the next epoch is {expected}.")

    def _growth_can_train(self, epoch: int) -> bool:
        """A split after the last epoch, or just before fine-tuning, would leave a tail that nothing trains apart."""
        plan, last = self._config.plan, epoch + self._config.growth.min_epochs
        return last < plan.num_epochs and phase_of(plan, last) == "subspace"

    def _partition(self, records: list[_Record]) -> tuple[tuple[int, ...], int]:
        growths = [record.growth for record in records if record.growth is not None]
        return (growths[-1].widths if growths else tuple(self._config.widths)), len(growths)

    def _history(self) -> list[EpochReport]:
        return [
            EpochReport(
                r.epoch,
                r.metric,
                isinstance(r.growth, Growth),
                isinstance(r.growth, Rollback),
                "" if r.growth is None else r.growth.decision_id,
            )
            for r in self._records
        ]
