"""`subspace submit ...`: hand a run to a scheduler, one command each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

Words = tuple[str, ...]
submit = SubcommandApp()


@submit.command(name="ray")
def submit_ray(
    config: Positional[Path],
    /,
    *,
    overrides: Words = (),
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float | None = None,
    cpus_per_worker: float | None = None,
    working_dir: Path | None = None,
    run_dir: Path | None = None,
    submission_id: str | None = None,
    wait: bool = True,
    dry_run: bool = False,
) -> int:
    """Train on a Ray cluster, as a job; a run folder that is used already is gone on with.

    The token of the cluster is read from RAY_AUTH_TOKEN or from the file that RAY_AUTH_TOKEN_PATH names.

    Args:
        config: YAML file, see configs/.
        overrides: section.key=value, as many as needed and anywhere; --section.key value means the same.
        address: dashboard of the cluster, http://HEAD:8265; RAY_API_SERVER_ADDRESS when not given.
        num_workers: ranks (launch.nproc).
        gpus_per_worker: ray.gpus_per_worker; without it the run is on CPUs.
        cpus_per_worker: ray.cpus_per_worker.
        working_dir: folder with CONFIG and the code, uploaded; without it this package is installed on every node.
        run_dir: folder of the run, on storage that all nodes share; runs/NAME when not given.
        submission_id: name of the job; a new one when not given.
        wait: print the log until the run has ended, and end with its exit code.
        dry_run: check what can be checked here, say what would be sent, send nothing.
    """
    from launch.ray_submit import SubmitOptions
    from launch.ray_submit import submit as run_submit

    given = {
        "launch.nproc": num_workers,
        "ray.gpus_per_worker": gpus_per_worker,
        "ray.cpus_per_worker": cpus_per_worker,
    }
    words = [*overrides, *(f"{name}={value}" for name, value in given.items() if value is not None)]
    return run_submit(config, words, SubmitOptions(address, working_dir, run_dir, submission_id, wait, dry_run))


@submit.command
def slurm(
    config: Positional[Path],
    /,
    *,
    overrides: Words = (),
    nodes: int,
    gpus_per_node: int = 0,
    nproc_per_node: int | None = None,
    time: str = "24:00:00",
    partition: str | None = None,
    account: str | None = None,
    cpus_per_task: int | None = None,
    signal_seconds: int = 300,
    run_dir: Path | None = None,
    sweep: UseAppendAction[Words] = (),
    setup: UseAppendAction[Words] = (),
    python: str = sys.executable,
    sbatch_option: UseAppendAction[Words] = (),
    as_json: Annotated[bool, arg(name="json")] = False,
    dry_run: bool = False,
) -> int:
    """Train as a job of Slurm, which requeues itself when it is preempted or out of time; print its id.

    Args:
        config: YAML file, see configs/.
        overrides: section.key=value, as many as needed and anywhere; --section.key value means the same.
        nodes: nodes of the job.
        gpus_per_node: GPUs, and ranks, on every node; 0 trains on CPUs.
        nproc_per_node: ranks on every node, where they are not one per GPU.
        time: limit as sbatch takes it, of one attempt; the run goes on after it.
        partition: as sbatch takes it; the site's default when not given.
        account: as sbatch takes it.
        cpus_per_task: CPUs on every node; the site's default when not given.
        signal_seconds: how long before the limit the run saves and stops.
        run_dir: folder of the run, or of all runs of a sweep, that all nodes see; runs/NAME when not given.
        sweep: setting=value,value,...; several give all combinations, one task of an array job each.
        setup: shell line run on the first node before the ranks start, e.g. 'module load cuda'; may be repeated.
        python: interpreter of the ranks; the one of this command when not given.
        sbatch_option: any other option of sbatch, NAME or NAME=VALUE, e.g. --sbatch-option=constraint=a100.
        as_json: print job, run folder and script as JSON.
        dry_run: print the script, submit and write nothing.
    """
    from launch.slurm import SlurmOptions
    from launch.slurm import submit as run_submit

    given = SlurmOptions(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        nproc_per_node=nproc_per_node,
        time=time,
        partition=partition,
        account=account,
        cpus_per_task=cpus_per_task,
        signal_seconds=signal_seconds,
        run_dir=run_dir,
        setup="\n".join(setup),
        python=python,
        sbatch_options=sbatch_option,
        sweep=sweep,
        dry_run=dry_run,
    )
    done = run_submit(config, overrides, given)
    if as_json:
        print(json.dumps({"job": done.job, "run": str(done.run), "script": done.script}))
    else:
        print(done.script if dry_run else done.job, end="" if dry_run else "\n")
    return 0
