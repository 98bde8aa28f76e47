"""A run on somebody's Ray cluster, from inside: the driver of the job, and the ranks as workers of Ray Train.

    subspace submit ray (launch/ray_submit.py) -> job -> driver -> Controller and k-means actors (launch/services.py)
                                                             \\-> Ray Train -> workers, each one rank (launch/rank.py)

Ray Train places the workers, forms the process group and starts the group again when one dies; every rank then goes on
from the newest checkpoint in the run folder, which must be on storage that all nodes share. What became of the run is
in status.json. A stopped job (SIGTERM to the driver) and a node that is about to be taken away both make the ranks save
and stop together at the next step boundary.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import ray_session
from cluster.errors import ClusterTimeout
from cluster.processes import die_with_parent
from data_shards.errors import UserError
from launch import history, rank, services, torchrun, train
from launch.config import RunConfig
from launch.ledger import Ledger
from launch.ray_bell import Bell
from launch.ray_room import NoRoom, asked, check_room, worker_resources
from launch.ray_submit import CONFIG, packed, unpacked
from launch.status import known_status, write_status
from trainer import distributed

ray_train: Any = ray.train  # type checkers see the interface before version 2 only
_TRAIN_FOLDER = "logs/ray_train"  # Ray Train wants one; ours are the checkpoints
_PREEMPTION_POLL_S = 5.0  # as often as Ray Train itself looks for nodes that are being drained


# ---- the driver ----------------------------------------------------------------------------------------------------


def drive(run: Path) -> int:
    """Be the driver of a job: carry the run through on the cluster that the job is in; return its exit code.

    Raises:
        UserError: what a user can put right, or how the run failed.
    """
    if CONFIG not in os.environ:
        raise UserError("this is the driver of a Ray job; use 'subspace submit ray CONFIG', which starts it")
    config = unpacked(os.environ[CONFIG])
    return train.run_to_end(config, run, "auto", lambda launch: _carry_through(config, run, launch))


def _carry_through(config: RunConfig, run: Path, launch: str) -> None:
    services.refuse_open_ray(os.environ["RAY_ADDRESS"])
    session = ray_session.ensure_ray(os.environ["RAY_ADDRESS"])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray, which sets handlers of its own
        signal.signal(number, lambda number, frame: stop.set())
    try:
        check_room(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        print(f"asking Ray for {asked(config)}", flush=True)
        _train(config, run, launch, stop)
    finally:
        session.close()
        shutil.rmtree(run / _TRAIN_FOLDER, ignore_errors=True)


def _train(config: RunConfig, run: Path, launch: str, stop: threading.Event) -> None:
    write_status(run, state="running")
    try:
        with services.started(config, run, config.launch.nproc):
            while _fit(config, run, launch, stop) and not stop.is_set():
                print("a node is taken away: starting again on the nodes that are left", flush=True)
    except (NoRoom, ClusterTimeout) as error:
        write_status(run, state="failed", exit_code=error.exit_code, reason=str(error))
        raise


def _fit(config: RunConfig, run: Path, launch: str, stop: threading.Event) -> bool:
    """Train until all is done, has failed for good, or has been stopped; return whether it was saved and put aside."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    threads = 4 * config.launch.nproc + 8
    bell: Any = ray.remote(Bell).options(num_cpus=0, max_concurrency=threads, scheduling_strategy=here).remote()
    training, log_file = _Training(_trainer(config, run, launch, bell)), _Tail(run / "train.log")
    training.start()
    while training.is_alive() and not stop.is_set():
        training.join(0.2)
        log_file.show()
    if training.is_alive() and ray.get(bell.ring.remote()):  # otherwise no rank has begun: there is nothing to save
        training.join(config.ray.stop_timeout_s)
    log_file.show()
    if training.is_alive():
        _put_aside(run, "stopped before it could save")
    if training.error is not None:
        _explain(config, run, training.error)
    if training.refusal is not None:
        raise NoRoom(training.refusal)
    return known_status(run).get("state") == "preempted"


def _put_aside(run: Path, reason: str) -> None:
    """Put on record that a run was stopped from outside; its newest checkpoint is where it goes on."""
    ledger = Ledger(run)
    made = history.attempts(ledger.events())
    if made:
        ledger.end(made[-1].number, "preempted", 75, reason)
    write_status(run, state="preempted", exit_code=75, reason=reason)


class _Training(threading.Thread):
    """Ray Train in a thread, since the driver's own must stay free for signals."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self._trainer = trainer
        self.error: Exception | None = None
        self.refusal: str | None = None

    def run(self) -> None:
        try:
            self.refusal = self._trainer.fit().return_value
        except Exception as error:  # looked at by the driver's thread
            self.error = error


class _Tail:
    """Shows what is appended to a file from now on: the job's log is then that of the run, and not Ray's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        """Print what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        self._shown += len(new)
        print(new.decode(errors="replace"), end="", flush=True)


def _explain(config: RunConfig, run: Path, error: Exception) -> None:
    """Say why Ray Train gave up; a rank that failed has already said so in status.json, better than Ray can."""
    if not isinstance(error, ray_train.TrainingFailedError):
        raise error
    cause = getattr(error, "controller_failure", None)
    if type(cause).__name__ == "WorkerGroupStartupTimeoutError":
        raise NoRoom(
            f"Ray had no room for {asked(config)} within ray.placement_timeout_s {config.ray.placement_timeout_s:g} s:"
            " other runs hold the nodes, or nodes are gone"
        )
    if known_status(run).get("reason") is None:
        write_status(run, reason=f"Ray Train gave up: {str(cause or error).strip().splitlines()[-1]}")


def _trainer(config: RunConfig, run: Path, launch: str, bell: Any) -> Any:
    settings, ranks = config.ray, config.launch
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a worker stays where the job is, in the working directory
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(settings.placement_timeout_s)
    work_: Any = work  # its interface says that nothing comes back; version 2 hands it over
    return TorchTrainer(
        work_,
        train_loop_config={"config": packed(config), "run": str(run), "bell": bell},
        torch_config=TorchConfig(timeout_s=int(ranks.timeout_s)),
        scaling_config=ray_train.ScalingConfig(
            num_workers=ranks.nproc,
            use_gpu=settings.gpus_per_worker > 0,
            resources_per_worker=worker_resources(config),
            placement_strategy=settings.placement,
        ),
        run_config=ray_train.RunConfig(
            name=Path(_TRAIN_FOLDER).name,
            storage_path=str(run / Path(_TRAIN_FOLDER).parent),
            failure_config=ray_train.FailureConfig(
                max_failures=torchrun.agent_restarts(config),
                controller_failure_limit=torchrun.agent_restarts(config),
                max_preemption_failures=-1,
            ),
            worker_runtime_env={"env_vars": worker_environment(config, launch)},
        ),
    )


def worker_environment(config: RunConfig, launch: str) -> dict[str, str]:
    """Return the variables that a worker must have before torch is imported, and the address of the run's actors."""
    variables = torchrun.environment(config, config.launch.nproc, launch)
    return {**variables, **{name: os.environ[name] for name in (services.ADDRESS,) if name in os.environ}}


# ---- the workers ---------------------------------------------------------------------------------------------------


def work(job: dict[str, Any]) -> str | None:
    """Be one worker of Ray Train: a rank, in a thread of a process that Ray looks after.

    Returns when the run is done, put aside, or has failed for good; a sentence when it could not even begin. Raises
    what makes Ray Train start the group again.
    """
    die_with_parent()  # Ray 2.60 lets a worker outlive its raylet by minutes, while another group is started
    run = Path(job["run"])
    if distributed.any_rank(not (run / "status.json").exists()):
        return f"not every node sees the run folder {run}: give a --run-dir on storage that all nodes share"
    for target, arguments in ((_listen, (job["bell"],)), (_watch_for_preemption, ())):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    if rank.work(unpacked(job["config"]), run):
        raise RankFailed(f"rank {os.environ['RANK']} failed; see train.log and logs/ in {run}")
    return None


class RankFailed(RuntimeError):
    """A rank failed in a way that starting again may mend."""


def _listen(bell: Any) -> None:
    try:
        ray.get(bell.wait.remote())
    except ray.exceptions.RayError:
        return  # the driver is gone, and its workers with it
    rank.ask_to_stop()


def _watch_for_preemption() -> None:
    """Save and stop when a node of the group is about to be taken away; every rank asks, as Ray Train wants it."""
    while ray_train.get_preemption_info() is None:
        time.sleep(_PREEMPTION_POLL_S)
    rank.ask_to_stop()
