"""The parts of a rank's training, put together and brought to where the run is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster.local import ClusterClient
from data_shards.errors import DataIntegrityError
from launch import build, fingerprint, history, objective, run_folder
from launch.attempt import Attempt
from launch.config import RunConfig
from launch.ledger import Ledger
from launch.record import RunRecorder, SilentRecorder, append_event
from trainer import distributed
from trainer.checkpoint import Checkpoint, CheckpointStore, no_fence, read
from trainer.keeper import Keeper
from trainer.loop import Loop
from trainer.model import count_parameters
from trainer.reclustering import Reclustering
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
    embed_options = build.embed_options(config)
    keeper = Keeper(
        engine,
        objectives,
        state,
        client,
        Saver(store, config.checkpoint.asynchronous),
        recorder,
        attempt.number,
        stop_on_error=config.checkpoint.on_error == "stop",
    )
    reclustering = Reclustering(
        engine,
        objectives,
        state,
        train,
        embed_options,
        client,
        recorder,
        config.cluster.features,
        config.seed,
        build.repair_rule(config),
        config.cluster.timeout_s,
    )
    loop = Loop(
        build.loop_options(config, stop_after_step),
        engine,
        objectives,
        state,
        train,
        validation,
        embed_options,
        build.batch_rule(config),
        client,
        reclustering,
        keeper,
        recorder,
        config.data.num_workers,
        should_stop=should_stop,
    )
    return loop, recorder, store


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
