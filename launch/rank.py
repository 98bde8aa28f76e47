"""One rank of a run: build the parts from RUN/config.yaml, go on from the newest checkpoint, train, and finish the run.

Started by `subspace train` (through torch.distributed.run), by anybody's torchrun, or by Ray Train.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

import torch

from cluster.processes import die_with_parent
from data_shards.errors import UserError
from launch import build, engines, exported, history, services
from launch.assembly import assemble
from launch.attempt import Attempt, Refused, begin, end
from launch.config import RunConfig, stored_config
from launch.ledger import Ledger, launch_id
from launch.record import PrintableLines, append_event
from launch.scoring import score_splits
from launch.status import write_status
from trainer import distributed, watchdog
from trainer.checkpoint import CheckpointStore
from trainer.export import export
from trainer.loop import Loop
from trainer.state import RunState

log = logging.getLogger(__name__)
# What a restart cannot mend: configuration, data, numbers, a run that is taken, no progress.
FINAL_CODES = (2, 3, 4, 6, 7)
TAKEN = 6
MAX_CLOCK_DIFFERENCE_S = 5.0
_stop = False


def main(run: Path, stop_after_step: int | None = None, config: RunConfig | None = None) -> int:
    """Run this rank; return its exit code. What became of the run is in status.json, which has the last word.

    `config` is the one that rank 0 stored; it is read from the run folder when not given.
    """
    die_with_parent()
    _listen()
    return work(config or stored_config(run), run, stop_after_step)


def work(config: RunConfig, run: Path, stop_after_step: int | None = None) -> int:
    """Be a rank in a process that somebody else looks after: its parent and signals are theirs. Returns as `main`."""
    prepare_process(config)
    rank = int(os.environ.get("RANK", "0"))
    set_up_logging(run, rank)
    if _failed_for_good(run):
        return 0
    watchdog.arm(run / "logs", rank, 0, config.launch.timeout_s)
    try:
        with distributed.stage("start-up"):
            distributed.initialise(config.launch.timeout_s)
        with ExitStack() as ends:
            attempt = begin(config, run, ends)
            try:
                return _train(config, run, attempt, stop_after_step)
            except Exception as error:
                return _failed(run, rank, attempt.number, error)
    except Exception as error:
        return _not_begun(run, rank, error)
    finally:
        distributed.shut_down()
        watchdog.disarm()


def _train(config: RunConfig, run: Path, attempt: Attempt, stop_after_step: int | None) -> int:
    engines.check_world_size(config, distributed.world_size())
    _compare_clocks()
    watchdog.arm(run / "logs", distributed.rank(), attempt.number, config.launch.timeout_s)
    with ExitStack() as ends:
        with distributed.stage("connection to the cluster", at_most_s=config.cluster.timeout_s):
            client = services.connect(config, run, attempt.number, ends)
        ends.callback(client.close)
        loop, recorder, store = assemble(config, run, attempt, client, stop_after_step, lambda: _stop)
        ends.callback(recorder.close)
        outcome = loop.run()
        if outcome == "completed":
            with distributed.stage("final scores"):
                finish(config, run, loop, store)
        end(run, attempt, outcome, loop, recorder)
        with distributed.stage("end of the run"):
            distributed.barrier()
    return 0


def _compare_clocks() -> None:
    """Warn when the machines disagree about the time: torchrun takes one whose clock is late for dead."""
    differences = distributed.clock_differences()
    furthest = max(range(len(differences)), key=lambda rank: abs(differences[rank]))
    if distributed.rank() == 0 and abs(differences[furthest]) > MAX_CLOCK_DIFFERENCE_S:
        log.warning(
            "the clock of rank %d's machine is %+.1f s off that of rank 0's; set both by NTP: "
            "torchrun cannot start or restart across clocks that differ by 15 s",
            furthest,
            differences[furthest],
        )


def finish(config: RunConfig, run: Path, loop: Loop, store: CheckpointStore) -> None:
    """Score the best weights on validation and test (read here for the first and only time), export, report."""
    loop.recorder.phase("final scores")
    best = store.best()
    loop.engine.load_tensors(best.tensors)
    partition = RunState.from_checkpoint(best, loop.state.saliency).partition
    network = loop.engine.model
    folder, train, validation, test = build.open_splits(config)
    with loop.engine.averaged():
        splits = [split for split in (validation, test) if split is not None]
        found = score_splits(config, run, network, partition, train, splits)
        if distributed.rank() == 0:
            distributed.pat()
            known = exported.facts(config, folder.manifest, int(best.state["best"]["epoch"]))
            export(run / "exported", network, partition, known, found)


# -- the process


def prepare_process(config: RunConfig) -> None:
    """Set threads and determinism."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = config.launch.threads or max(1, (os.cpu_count() or 1) // ranks_here)
    torch.set_num_threads(1 if config.deterministic else threads)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def set_up_logging(run: Path, rank: int) -> None:
    """Log to RUN/train.log (rank 0, also the terminal) or RUN/logs/rank_00001.log."""
    path = run / "train.log" if rank == 0 else run / "logs" / f"rank_{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(path)]
    if rank == 0:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.Formatter.converter = time.gmtime
    for handler in handlers:
        handler.setFormatter(PrintableLines("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for noisy in ("torch", "ray", "matplotlib", "faiss"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _failed_for_good(run: Path) -> bool:
    """Return whether an attempt of this launch failed for a reason that a restart cannot mend."""
    made = history.attempts(Ledger(run).events())
    ended = made[-1].end if made and made[-1].launch == launch_id() else None
    return ended is not None and ended["state"] == "failed"


def _is_final(error: Exception) -> bool:
    return getattr(error, "exit_code", 70) in FINAL_CODES or getattr(error, "final", False)


def _say(error: Exception) -> None:
    known = _is_final(error) or isinstance(error, UserError)
    log.error("%s", error if known else "".join(traceback.format_exception(error)))


def _failed(run: Path, rank: int, attempt: int, error: Exception) -> int:
    """Put a failure on record. Exit code 0 keeps the agent from starting again what would fail again."""
    code = getattr(error, "exit_code", 70)
    _say(error)
    if code == TAKEN:
        return 0  # nothing here is ours to write any more
    if not _is_final(error):
        if code != history.TIMEOUT or rank == 0:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            Ledger(run).fault(attempt, rank, code, reason)
        return 1
    if Ledger(run).end(attempt, "failed", code, str(error)):  # otherwise another rank has said so
        status = write_status(run, state="failed", exit_code=code, reason=str(error))
        where = {name: status[name] for name in ("epoch", "step", "attempt")}
        append_event(run, "failed", **where, exit_code=code, reason=str(error))
    return 0


def _not_begun(run: Path, rank: int, error: Exception) -> int:
    """Say why a rank could not even take part in an attempt; the ledger knows nothing of it, or all."""
    _say(error)
    if rank == 0 and not isinstance(error, Refused):
        write_status(run, reason=f"{type(error).__name__}: {error}")
    return 0 if _is_final(error) else 1


def ask_to_stop() -> None:
    """Save and stop at the next step boundary, together with the other ranks."""
    global _stop
    _stop = True


def _listen() -> None:
    """Take INT, TERM, USR1 and USR2 as a wish to save and stop."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: ask_to_stop())
