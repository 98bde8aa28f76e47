"""One incarnation of a run: how it takes the lease, and how it is put on record that it ended."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import UserError
from launch.config import RunConfig
from launch.ledger import Lease, Ledger, LostLease, launch_id
from launch.record import SilentRecorder
from launch.status import write_status
from trainer import distributed
from trainer.loop import Loop


@dataclass(frozen=True)
class Attempt:
    """What the ranks of one incarnation share; only rank 0 holds the lease."""

    number: int
    run_id: str
    lease: Lease | None


class Refused(UserError):
    """Rank 0 could not begin an attempt; says the same on every rank."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def begin(config: RunConfig, run: Path, ends: ExitStack) -> Attempt:
    """Take the lease of the run, and have every rank know its number."""
    lease, told = None, {}
    if distributed.rank() == 0:
        try:
            lease = Ledger(run).begin(launch_id(), distributed.world_size(), config.launch.max_restarts)
        except UserError as error:
            told = {"reason": str(error), "exit_code": error.exit_code}
        else:
            ends.callback(lease.close)
            told = {"number": lease.attempt, "run_id": lease.run_id}
            write_status(run, state="running", attempt=lease.attempt, world_size=distributed.world_size())
    told = distributed.broadcast_json(told)
    if "reason" in told:
        raise Refused(**told)
    return Attempt(**told, lease=lease)


def end(run: Path, attempt: Attempt, outcome: str, loop: Loop, recorder: SilentRecorder) -> None:
    """Put on record how the attempt ended: first in the ledger, which has the last word."""
    code = 0 if outcome == "completed" else 75
    reason = loop.keeper.not_saved.error if loop.keeper.not_saved is not None else None
    if attempt.lease is not None:
        where = {"epoch": loop.state.epoch, "step": loop.state.step}
        if not Ledger(run).end(attempt.number, outcome, code, reason, **where):
            raise LostLease(f"attempt {attempt.number} was replaced before it ended")
    recorder.event(outcome, loop.state)
    recorder.status(outcome, loop.state, exit_code=code, reason=reason)
