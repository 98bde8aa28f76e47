"""`subspace train`: check everything, take the run folder, start shared processes and ranks, say how it ended."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.processes import die_with_parent
from data_shards.errors import UserError
from launch import torchrun
from launch.config import Resume, RunConfig, dump_config, load_config
from launch.fingerprint import pinned
from launch.ledger import LAUNCH, launch_id
from launch.status import known_status, write_status
from launch.trained import alone, config_of, load


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says beside the configuration."""

    run_dir: Path | None = None
    resume: Resume = "never"
    stop_after_step: int | None = None
    print_config: bool = False
    dry_run: bool = False


def start(config_path: Path, overrides: list[str], options: TrainOptions) -> int:
    """Run a training to its end; return the exit code.

    Raises:
        UserError: anything that a user can put right, before anything is started; or how the run failed.
    """
    config = load_config(config_path, overrides)
    if options.print_config:
        print(dump_config(config), end="")
        return 0
    run = options.run_dir or Path("runs") / config.name
    if options.dry_run:
        check(config, config.launch.nproc, build_shards=False)
        return 0
    if torchrun.under_torchrun():
        return _under_torchrun(config, run, options)
    return run_to_end(config, run, options.resume, lambda launch: _launch(config, run, options, launch))


def run_to_end(config: RunConfig, run: Path, resume: Resume, carry_through: Callable[[str], None]) -> int:
    """Check everything, take the folder, start what trains under a name for this launch and wait for it.

    Returns the exit code.

    Raises:
        UserError: what a user can put right, or how the run failed.
    """
    from launch import run_folder

    launch = uuid.uuid4().hex
    run_folder.check(run, config, resume, launch)
    check(config, config.launch.nproc, build_shards=True)
    going_on = run_folder.take(run, config, launch)
    if going_on and _state(run) == "completed":
        print(f"{run} is complete already")
    else:
        carry_through(launch)
    code = torchrun.outcome(run, launch)
    if code == 0:
        _conclude(run)
    return code


def _launch(config: RunConfig, run: Path, options: TrainOptions, launch: str) -> None:
    from launch import services

    os.environ.update(torchrun.environment(config, config.launch.nproc, launch))
    write_status(run, state="running")
    with services.started(config, run, config.launch.nproc):
        torchrun.start_ranks(config, run, config.launch.nproc, options.stop_after_step)


def _under_torchrun(config: RunConfig, run: Path, options: TrainOptions) -> int:
    """Be a rank of somebody else's agent: rank 0 checks and takes the folder, and tells the others what came of it."""
    os.environ.update(pinned() if config.deterministic else {})  # before torch
    from launch.rank import main as run_rank
    from trainer import distributed

    die_with_parent()  # already now: the others may wait for this rank for minutes
    with distributed.stage("start-up"):
        distributed.initialise(config.launch.timeout_s)
    leader = distributed.rank() == 0
    refusal = _refusal(config, run, options, distributed.world_size()) if leader else None
    code, os.environ[LAUNCH] = distributed.broadcast_json([refusal.exit_code if refusal else 0, launch_id()])
    if code:
        distributed.shut_down()
        if refusal is not None:
            raise refusal
        return int(code)
    code = run_rank(run, options.stop_after_step, config)
    if leader and _state(run) == "completed":
        _conclude(run)
    return int(code)


def _refusal(config: RunConfig, run: Path, options: TrainOptions, world_size: int) -> UserError | None:
    """Take the run folder, or return why not."""
    from launch import run_folder

    try:
        check(config, world_size, build_shards=True)
        run_folder.check(run, config, options.resume, launch_id())
        run_folder.take(run, config, launch_id())
    except UserError as error:
        return error
    return None


def check(config: RunConfig, world_size: int, build_shards: bool) -> None:
    """Build every part once, so that what cannot work is said before anything is started."""
    from data_shards import order
    from launch import build, engines, networks, objective, scoring, trackers

    trackers.check(config.launch.trackers)
    networks.check(config)
    scoring.protocols(config)
    objective.check_names(config)
    engines.check_world_size(config, world_size)
    if config.data.build is not None and build_shards:
        build.build_missing_shards(config)
    _, train, *scored = build.open_splits(config)
    if config.evaluate.by == "retrieval":
        scoring.check_queries(config, [split for split in scored if split is not None])
    if config.model.num_subspaces > len(train):
        raise UserError(f"model.num_subspaces {config.model.num_subspaces}: more clusters than the {len(train)} images")
    order.check_labels(train.labels, build.batch_rule(config))
    build.transform(config)
    networks.model(config)
    build.growth_policy(config)
    objective.build_objective(config, len(train.classes))


def _state(run: Path) -> str:
    return str(known_status(run).get("state"))


def _conclude(run: Path) -> None:
    """Print the table of scores and write the report."""
    from launch.report import write_report
    from launch.score_table import print_scores

    print_scores(
        {path.stem: json.loads(path.read_text()) for path in sorted((run / "evaluation").glob("*.json"), reverse=True)}
    )
    print(f"report: {write_report(run)}")


def evaluate(run: Path, split: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Score the best checkpoint of a run on a split, write evaluation/{split}.*, return the scores.

    Raises:
        UserError: no such run, checkpoint or split, or overrides of more than how it is scored.
    """
    config = config_of(run, overrides)
    from launch import build
    from launch.scoring import protocols, score_splits

    protocols(config)
    folder, train, _, _ = build.open_splits(config)
    with alone(config):
        found = load(run, config)
        return score_splits(config, run, found.network, found.partition, train, [folder.split(split)])[split]
