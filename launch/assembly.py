"""The parts of a rank's training, put together and brought to where the run is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster.local import ClusterClient
from data_shards.errors import DataIntegrityError
from launch import build, engines, fingerprint, history, networks, objective, run_folder
from launch.attempt import Attempt
from launch.config import RunConfig
from launch.ledger import Ledger
from launch.record import RunRecorder, SilentRecorder, append_event
from launch.trackers import Beside, Tracked
from trainer import distributed
from trainer.checkpoint import Checkpoint, CheckpointStore, no_fence, read
from trainer.keeper import Keeper
from trainer.loop import Loop
from trainer.model import count_parameters
from trainer.reclustering import Reclustering
from trainer.recycling import Recycled
from trainer.saving import Saver
from trainer.state import RunState

log = logging.getLogger(__name__)


def assemble(
    config: RunConfig,
    run: Path,
    attempt: Attempt,
    client: ClusterClient,
    stop_after_step: int | None,
    should_stop: Callable[[], bool],
) -> tuple[Loop, SilentRecorder, CheckpointStore]:
    """Return the loop at the position of the newest checkpoint, who records it, and where it is saved."""
    device = distributed.device()
    _, train, validation, _ = build.open_splits(config, partial(append_event, run, "quarantined"))
    network = networks.model(config, device)
    # Counted here: an engine may spread them over the ranks.
    parameters = f"{type(network.backbone).__name__}: {count_parameters(network):,} parameters"
    engine = engines.engine(config, network, distributed.world_size())
    store = _store(config, run, attempt)
    state = build.fresh_state(config, device)
    objectives = objective.build_objective(config, len(train.classes), device)
    newest = _resume(run, store)
    if newest is not None:
        engine.load_tensors(newest.tensors)
        state = RunState.from_checkpoint(newest, state.saliency)
        objectives.load_tensors(newest.tensors, state.partition)
        if distributed.rank() == 0:
            client.restore(newest.state["controller"])
    recorder = _recorder(config, run, attempt, state, newest, f"{parameters} on {device}")
    embed_options = build.embed_options(config)
    clustering, kept = config.cluster, None
    if clustering.features == "recycled":
        max_age = clustering.max_age or clustering.recluster_every
        kept = Recycled(len(train), network.head.num_features, max_age, device)
    reclustering = Reclustering(
        engine,
        objectives,
        state,
        train,
        embed_options,
        client,
        recorder,
        clustering.features,
        kept,
        clustering.overlap,
        config.seed,
        build.repair_rule(config),
        clustering.timeout_s,
    )
    if newest is not None:
        reclustering.load_tensors(newest.tensors)
    saver = Saver(store, config.checkpoint.asynchronous)
    stop_on_error = config.checkpoint.on_error == "stop"
    loop = Loop(
        build.loop_options(config, stop_after_step),
        engine,
        objectives,
        state,
        train,
        build.validator(config, validation, objectives),
        embed_options.transform,
        build.batch_rule(config),
        client,
        reclustering,
        Keeper(engine, objectives, state, client, saver, recorder, attempt.number, stop_on_error=stop_on_error),
        recorder,
        config.data.num_workers,
        should_stop=should_stop,
    )
    return loop, recorder, store


def _store(config: RunConfig, run: Path, attempt: Attempt) -> CheckpointStore:
    """Return where the run is saved; only the attempt that holds the run's lease may save there."""
    identity = {"run": attempt.run_id, "config": run_folder.config_hash(config)}
    fence = no_fence if attempt.lease is None else attempt.lease.committing
    return CheckpointStore(run / "checkpoints", config.checkpoint.keep, identity, fence)


def _recorder(
    config: RunConfig, run: Path, attempt: Attempt, state: RunState, newest: Checkpoint | None, network: str
) -> SilentRecorder:
    """Return who records the run, on rank 0 only, and record with it that, and where, the run begins or goes on."""
    recorder: SilentRecorder = SilentRecorder()
    if distributed.rank() == 0:
        tracked = Tracked(run, attempt.run_id, config.model_dump(mode="json", exclude={"ray", "launch"}), state.step)
        trackers = Beside(config.launch.trackers, tracked)
        recorder = RunRecorder(run, attempt.number, distributed.world_size(), state.step, trackers)
        if config.model.weights == "random" and newest is None:
            log.warning("starting from RANDOM weights; model.weights=PATH takes a .pth or .safetensors file")
        log.info("%s", network)
    recorder.event("started" if newest is None else "restart", state, world_size=distributed.world_size())
    _compare_environment(run, newest, state, recorder)
    return recorder


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
