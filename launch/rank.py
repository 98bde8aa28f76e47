"""One rank of a run: build the parts from RUN/config.yaml, go on from the newest checkpoint, train, and finish the run.

Started by `subspace train` (through torch.distributed.run), by anybody's torchrun, or by Ray Train.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.processes import die_with_parent
from data_shards.errors import DataIntegrityError, UserError
from data_shards.files import write_text
from data_shards.manifest import Manifest
from data_shards.reader import SplitReader
from launch import build, fingerprint, history, objective, run_folder, services
from launch.config import RunConfig, stored_config
from launch.ledger import Lease, Ledger, LostLease, launch_id
from launch.record import PrintableLines, RunRecorder, SilentRecorder, append_event
from launch.status import write_status
from trainer import distributed, evaluate, watchdog
from trainer.checkpoint import Checkpoint, CheckpointStore, no_fence, read
from trainer.export import export
from trainer.keeper import Keeper
from trainer.loop import Loop
from trainer.model import EmbeddingModel, count_parameters
from trainer.saving import Saver
from trainer.state import RunState
from trainer.subspaces.partition import SubspacePartition

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
            attempt = _begin(config, run, ends)
            try:
                return _train(config, run, attempt, stop_after_step)
            except Exception as error:
                return _failed(run, rank, attempt.number, error)
    except Exception as error:
        return _not_begun(run, rank, error)
    finally:
        distributed.shut_down()
        watchdog.disarm()


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


def _begin(config: RunConfig, run: Path, ends: ExitStack) -> Attempt:
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


def _train(config: RunConfig, run: Path, attempt: Attempt, stop_after_step: int | None) -> int:
    build.check_world_size(config, distributed.world_size())
    _compare_clocks()
    watchdog.arm(run / "logs", distributed.rank(), attempt.number, config.launch.timeout_s)
    with ExitStack() as ends:
        with distributed.stage("connection to the cluster", at_most_s=config.cluster.timeout_s):
            client = services.connect(config, run, attempt.number, ends)
        ends.callback(client.close)
        loop, recorder, store = _loop(config, run, attempt, client, stop_after_step)
        ends.callback(recorder.close)
        outcome = loop.run()
        if outcome == "completed":
            with distributed.stage("final scores"):
                finish(config, run, loop, store)
        _end(run, attempt, outcome, loop, recorder)
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


def _end(run: Path, attempt: Attempt, outcome: str, loop: Loop, recorder: SilentRecorder) -> None:
    """Put on record how the attempt ended: first in the ledger, which has the last word."""
    code = 0 if outcome == "completed" else 75
    reason = loop.keeper.not_saved.error if loop.keeper.not_saved is not None else None
    if attempt.lease is not None:
        where = {"epoch": loop.state.epoch, "step": loop.state.step}
        if not Ledger(run).end(attempt.number, outcome, code, reason, **where):
            raise LostLease(f"attempt {attempt.number} was replaced before it ended")
    recorder.event(outcome, loop.state)
    recorder.status(outcome, loop.state, exit_code=code, reason=reason)


def _resume(run: Path, store: CheckpointStore) -> Checkpoint | None:
    """Return the newest valid checkpoint, the one that rank 0 chose, on every rank."""
    found = told = None
    if distributed.rank() == 0:
        newest = store.newest_valid()
        committed = history.last_commit(Ledger(run).events())
        if newest is None and committed is not None:
            raise DataIntegrityError(
                f"{store.root} holds no checkpoint, but step {committed['step']} was saved there; bring it back, or"
                " start a new run folder"
            )
        if newest is not None:
            told, found = newest[0].name, newest[1]
    told = distributed.broadcast_json(told)
    if told is not None and found is None:
        found = read(store.root / told)
    return found


def _loop(
    config: RunConfig, run: Path, attempt: Attempt, client: Any, stop_after_step: int | None
) -> tuple[Loop, SilentRecorder, CheckpointStore]:
    device = distributed.device()
    _, train, validation, _ = build.open_splits(config, partial(append_event, run, "quarantined"))
    network = build.model(config, device)
    num_parameters = count_parameters(network)  # an engine may spread them over the ranks
    engine = build.engine(config, network, distributed.world_size())
    identity = {"run": attempt.run_id, "config": run_folder.config_hash(config)}
    fence = no_fence if attempt.lease is None else attempt.lease.committing
    store = CheckpointStore(run / "checkpoints", config.checkpoint.keep, identity, fence)
    state = build.fresh_state(config, device)
    objectives = objective.build_objective(config, len(train.classes), device)
    newest = _resume(run, store)
    if newest is not None:
        engine.load_tensors(newest.tensors)
        state = RunState.from_checkpoint(newest, state.saliency)
        objectives.load_tensors(newest.tensors, state.partition)
        if distributed.rank() == 0:
            client.restore(newest.state["controller"])
    recorder: SilentRecorder = SilentRecorder()
    if distributed.rank() == 0:
        recorder = RunRecorder(run, attempt.number, distributed.world_size(), state.step, config.launch.tensorboard)
        if config.model.weights == "random" and newest is None:
            log.warning("starting from RANDOM weights; model.weights=PATH takes a .pth or .safetensors file")
        log.info("%s: %s parameters on %s", type(network.backbone).__name__, f"{num_parameters:,}", device)
    recorder.event("started" if newest is None else "restart", state, world_size=distributed.world_size())
    _compare_environment(run, newest, state, recorder)
    saver = Saver(store, config.checkpoint.asynchronous)
    stop_on_error = config.checkpoint.on_error == "stop"
    keeper = Keeper(engine, objectives, state, client, saver, recorder, attempt.number, stop_on_error)
    loop = Loop(
        build.loop_options(config, stop_after_step),
        engine,
        objectives,
        state,
        train,
        validation,
        build.embed_options(config),
        build.batch_rule(config),
        client,
        keeper,
        recorder,
        config.data.num_workers,
        should_stop=lambda: _stop,
    )
    return loop, recorder, store


def _compare_environment(run: Path, newest: Checkpoint | None, state: RunState, recorder: SilentRecorder) -> None:
    """Keep what can change a bit of the result, and say what of it is not as it was, or as on rank 0."""
    state.fingerprint = fingerprint.fingerprint()
    before = {} if newest is None else newest.state.get("fingerprint", {})
    changed, unlike = fingerprint.changes(before, state.fingerprint), fingerprint.unlike_ranks(state.fingerprint)
    if distributed.rank() == 0:
        fingerprint.store(run, state.fingerprint)
        fingerprint.warn(changed)
    if changed or unlike:
        recorder.event("fingerprint", state, changed=changed, unlike_ranks=unlike)


def finish(config: RunConfig, run: Path, loop: Loop, store: CheckpointStore) -> None:
    """Score the best weights on validation and test (read here for the first and only time), export, report."""
    loop.recorder.phase("final scores")
    best = store.best()
    loop.engine.load_tensors(best.tensors)
    partition = RunState.from_checkpoint(best, loop.state.saliency).partition
    network = loop.engine.model
    folder, _, validation, test = build.open_splits(config)
    with loop.engine.averaged():
        splits = [split for split in (validation, test) if split is not None]
        found = {split.name: evaluate_split(config, run, network, partition, split) for split in splits}
        if distributed.rank() == 0:
            distributed.pat()
            facts = export_facts(config, folder.manifest, best.state["best"]["epoch"])
            export(run / "exported", network, partition, facts, found)


def export_facts(config: RunConfig, data: Manifest, epoch: int) -> dict[str, Any]:
    """Return what the model card says of a run."""
    return {
        "name": config.name,
        "backbone": config.model.backbone.name,
        "weights": config.model.weights,
        "data": f"{data.name} ({data.source})",
        "channels": config.data.channels,
        "size": config.data.image_size,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "monitor": config.growth.monitor,
        "epoch": epoch,
    }


def evaluate_split(
    config: RunConfig, run: Path, network: EmbeddingModel, partition: SubspacePartition, split: SplitReader
) -> dict[str, Any]:
    """Score a split and write evaluation/{split}.json and .safetensors; only rank 0 writes and gets the scores."""
    embedded = evaluate.embed_split(network, split, partition, build.embed_options(config), maps=True)
    if distributed.rank() != 0:
        return {}
    settings = config.evaluate
    vectors = embedded["vectors"]
    found = evaluate.scores(vectors, split, partition, settings.nmi_seeds, settings.exclude_groups, per_subspace=True)
    found.update(class_names=list(split.classes), widths=list(partition.widths))
    target = run / "evaluation"
    target.mkdir(exist_ok=True)
    evaluate.write_arrays(target / f"{split.name}.safetensors", embedded, split, settings.exclude_groups)
    write_text(target / f"{split.name}.json", json.dumps(found, indent=1) + "\n")
    return found


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
    for noisy in ("torch", "ray", "matplotlib", "numba", "faiss"):
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
