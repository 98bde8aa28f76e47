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

import psutil

from data_shards.errors import UserError
from launch.config import RunConfig
from launch.fingerprint import pinned
from launch.status import known_status, next_attempt, read_status, write_status

log = logging.getLogger(__name__)
FIRST_ATTEMPT = "SUBSPACE_FIRST_ATTEMPT"  # of this launch: what failed for good since then is not tried again


def under_torchrun() -> bool:
    """Return whether an agent of torch.distributed.run started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def agent_start() -> float:
    """Return when the agent that started this rank was started itself, in seconds since 1970."""
    return float(psutil.Process(os.getppid()).create_time())


def first_attempt(run: Path) -> int:
    """Return the first attempt that the agent of this rank has made, or makes now."""
    status = known_status(run)
    since = bool(status) and status["time"] >= agent_start()
    return next_attempt(run) - (1 if since else 0)


def environment(config: RunConfig, nproc: int, first_attempt: int) -> dict[str, str]:
    """Return the variables of agent and ranks: threads shared out, no busy waiting, one store per restart."""
    threads = config.launch.threads or max(1, (os.cpu_count() or 1) // nproc)
    return {
        # Without it a restarted rank may read the gloo addresses of the ranks before it (pytorch issue 135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        FIRST_ATTEMPT: str(first_attempt),
        **(pinned() if config.deterministic else {}),
    }


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
        max_restarts=config.launch.max_restarts,
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


def outcome(run: Path) -> int:
    """Return the exit code of a run whose ranks have ended, and make status.json say so."""
    status = read_status(run)
    if status["state"] == "running":
        status = write_status(
            run,
            state="failed",
            exit_code=status.get("exit_code") or 70,
            reason=status.get("reason") or "the ranks died without a word; see logs/ in the run folder",
        )
    if status["state"] == "failed":
        raise RunFailed(str(status["reason"]), int(status["exit_code"] or 70))
    return int(status["exit_code"] or 0)


class RunFailed(UserError):
    """The run ended badly; carries its exit code."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
