"""Start the ranks of one node with torch.distributed.run's API, or be a rank under somebody else's torchrun.

The agent restarts all ranks when one dies; each goes on from the newest checkpoint. Its exit code says little (torch
turns every failure into 1), so the outcome is read from status.json.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from cluster.errors import RunTaken
from data_shards.errors import UserError
from launch import history
from launch.config import RunConfig
from launch.fingerprint import pinned
from launch.ledger import LAUNCH, Ledger
from launch.status import known_status, write_status
from trainer import watchdog

log = logging.getLogger(__name__)
# The ledger stops a run that makes no progress long before; this bounds what fails before it gets to the ledger.
AGENT_RESTARTS = 100
SILENT = "the ranks died without a word; see logs/ in the run folder"


def under_torchrun() -> bool:
    """Return whether an agent of torch.distributed.run started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def environment(config: RunConfig, nproc: int, launch: str) -> dict[str, str]:
    """Return the variables of agent and ranks: threads shared out, no busy waiting, one store per restart."""
    threads = config.launch.threads or max(1, (os.cpu_count() or 1) // nproc)
    return {
        # Without it a restarted rank may read the gloo addresses of the ranks before it (pytorch issue 135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        LAUNCH: launch,
        **(pinned() if config.deterministic else {}),
    }


def agent_restarts(config: RunConfig) -> int:
    """Return how often an agent may start the ranks again."""
    return AGENT_RESTARTS if config.launch.max_restarts else 0


def start_ranks(config: RunConfig, run: Path, nproc: int, stop_after_step: int | None) -> None:
    """Run `nproc` ranks on this node until they end; failures are restarted within the budget."""
    from torch.distributed.elastic.agent.server.api import SignalException  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=agent_restarts(config),
        monitor_interval=0.1,
        shutdown_timeout=240,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1,SIGUSR2",
        logs_specs=DefaultLogsSpecs(log_dir=str(run / "logs")),
    )
    arguments = ["-m", "launch", "rank", str(run)]
    if stop_after_step is not None:
        arguments += ["--stop-after-step", str(stop_after_step)]
    try:
        elastic_launch(settings, sys.executable)(*arguments)
    except (ChildFailedError, SignalException) as error:
        log.warning("ranks ended: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)


def outcome(run: Path, launch: str) -> int:
    """Return the exit code of a run whose ranks have ended, by its ledger, and make status.json say so.

    Raises:
        RunFailed: the run failed, or another launch has taken it over.
        RunTaken: another launch is at work, and this one could not begin.
    """
    ledger = Ledger(run)
    made = history.attempts(ledger.events())
    last = made[-1] if made else None
    ours = last is not None and last.launch == launch
    if last is not None and not ours:
        if any(attempt.launch == launch for attempt in made):
            raise RunFailed(f"{run} was taken over by another launch (attempt {last.number})", RunTaken.exit_code)
        ledger.check_free(launch)
    if last is not None and ours and last.end is None:
        why = last.fault or _late(run, last.number) or {"exit_code": 70, "reason": SILENT}
        ledger.end(last.number, "failed", why["exit_code"], why["reason"])
    found = history.standing(ledger.events())
    if not ours and found.get("state") != "completed":
        reason = (
            known_status(run).get("reason") or "the ranks could not begin; see train.log and logs/ in the run folder"
        )
        found = {"state": "failed", "exit_code": 70, "reason": reason}
    write_status(run, **found)
    if found["state"] == "failed":
        raise RunFailed(str(found["reason"]), int(found["exit_code"]))
    return int(found["exit_code"])


def _late(run: Path, attempt: int) -> dict[str, Any]:
    """Return why an attempt ended whose ranks could say it only in the files of their watchdogs; {} if not there."""
    late = watchdog.verdict(run / "logs", attempt)
    return {"exit_code": history.TIMEOUT, "reason": late} if late else {}


class RunFailed(UserError):
    """The run ended badly; carries its exit code."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
