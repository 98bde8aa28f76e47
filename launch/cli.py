"""The command line: `subspace COMMAND ...`, also `python -m launch COMMAND ...`.

Every command imports what it needs when it runs, so that help and configuration errors are answered at once. A user
error is one line and an exit code, never a traceback.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from data_shards.errors import UserError

app = SubcommandApp()
shards = SubcommandApp()
checkpoint = SubcommandApp()
submit = SubcommandApp()
Words = tuple[str, ...]
_DASHED = re.compile(r"--?[A-Za-z_]\w*(\.[\w-]+)+(=.*)?$", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_][\w.-]*=", re.DOTALL)
_KEEP_NEXT = ("--sweep", "--setup", "--sbatch-option")  # options whose value may look like an override, or an option


@app.command
def train(
    config: Positional[Path],
    /,
    *,
    overrides: Words = (),
    run_dir: Path | None = None,
    resume: Literal["auto", "never", "must"] = "never",
    nproc: int | None = None,
    deterministic: bool = False,
    stop_after_step: int | None = None,
    print_config: bool = False,
    dry_run: bool = False,
) -> int:
    """Train from a configuration file.

    Args:
        config: YAML file, see configs/.
        overrides: section.key=value, as many as needed and anywhere; --section.key value means the same.
        run_dir: folder of the run; runs/NAME when not given.
        resume: go on from the newest checkpoint of the run folder.
        nproc: ranks on this node (launch.nproc).
        deterministic: the same bytes on every rerun, after kill and resume.
        stop_after_step: save, stop as if preempted, exit code 75.
        print_config: print the resolved configuration and stop.
        dry_run: build every part, start nothing, write nothing.
    """
    from launch.train import TrainOptions, start

    words = [*overrides, *([f"launch.nproc={nproc}"] if nproc is not None else [])]
    words += ["deterministic=true"] if deterministic else []
    return start(config, words, TrainOptions(run_dir, resume, stop_after_step, print_config, dry_run))


@app.command
def rank(run: Positional[Path], /, *, stop_after_step: int | None = None) -> int:
    """Be one rank of a run; started by `subspace train`.

    Args:
        run: the run folder.
        stop_after_step: as in train.
    """
    from launch.rank import main as run_rank

    return run_rank(run, stop_after_step)


@app.command
def evaluate(
    run: Positional[Path],
    /,
    *,
    split: Literal["validation", "test"] = "validation",
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Score the best checkpoint of a run again.

    Args:
        run: the run folder.
        split: which split.
        as_json: print the scores as JSON.
    """
    from launch.train import evaluate as run_evaluate

    found = run_evaluate(run, split)
    if as_json:
        print(json.dumps(found))
    else:
        _print_scores({split: found})
    return 0


@app.command
def status(run: Positional[Path], /, *, as_json: Annotated[bool, arg(name="json")] = False) -> int:
    """Show what a run is doing.

    Args:
        run: the run folder.
        as_json: print status.json.
    """
    from launch.status import read_status, render_status

    if as_json:
        print(json.dumps(read_status(run)))
        return 0
    from rich.console import Console

    Console().print(render_status(run))
    return 0


@app.command
def report(run: Positional[Path], /) -> int:
    """Write RUN/report.html, one self-contained page, and RUN/plots.

    Args:
        run: the run folder.
    """
    from launch.report import write_report

    print(write_report(run))
    return 0


@shards.command
def build(
    source: Positional[str],
    dest: Positional[Path],
    /,
    *,
    overrides: Words = (),
    size: int | None = None,
    stored: Literal["raw", "png", "jpeg", "as-is"] | None = None,
    fit: Literal["crop", "pad", "stretch"] = "crop",
    shard_mb: int = 64,
    group: str | None = None,
    strict: bool = False,
    num_workers: int = 1,
) -> int:
    """Build a shard folder from images.

    Args:
        source: folder:PATH, table:LABELS.csv, isic19:PATH, mura:PATH, hyperkvasir:PATH, dicom:PATH, digits, phantoms.
        dest: the folder to make; must not exist.
        overrides: key=value options of the source, anywhere.
        size: side of the stored images in pixels; as they are when not given.
        stored: how images are stored.
        fit: how images become square.
        shard_mb: size of a shard in MiB.
        group: column of the table that must not cross splits; 'none' for none.
        strict: fail on the first image that cannot be read, instead of listing it in rejected.csv.
        num_workers: decoding threads.
    """
    from data_shards.build import build as run_build
    from launch.config import parse_overrides

    given = {**parse_overrides(list(overrides)), **({"group": group} if group is not None else {})}
    manifest = run_build(source, dest, size, stored, fit, shard_mb, strict, given, sys.stderr.isatty(), num_workers)
    for warning in manifest.warnings:
        print(f"note: {warning}", file=sys.stderr)
    return info(dest)


@shards.command
def verify(folder: Positional[Path], /) -> int:
    """Check every byte of a shard folder; exit code 3 and the damaged shard's name when something changed.

    Args:
        folder: the shard folder.
    """
    from data_shards.verify import verify as run_verify

    problems = run_verify(folder, sys.stderr.isatty())
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{folder}: all shards are what was written")
    return 3 if problems else 0


@shards.command
def info(folder: Positional[Path], /, *, as_json: Annotated[bool, arg(name="json")] = False) -> int:
    """Show what a shard folder holds.

    Args:
        folder: the shard folder.
        as_json: print as JSON.
    """
    from data_shards.info import info as read_info
    from data_shards.info import render_info

    content = read_info(folder)
    if as_json:
        print(json.dumps(content))
        return 0
    from rich.console import Console

    Console().print(render_info(content))
    return 0


@checkpoint.command(name="hash")
def hash_(run: Positional[Path], /) -> int:
    """Print one sha256 over weights, moments, partition, assignment, order position and controller snapshot.

    Args:
        run: the run folder.
    """
    from trainer.checkpoint import CheckpointStore, content_hash

    newest = CheckpointStore(run / "checkpoints").newest()
    if newest is None:
        raise UserError(f"{run} holds no complete checkpoint")
    print(content_hash(newest))
    return 0


# -- submit: one command per scheduler


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


@app.command(name="ray-job")
def ray_job(run: Positional[Path], /) -> int:
    """Be the driver of a job on a Ray cluster; started by `subspace submit ray`.

    Args:
        run: the run folder.
    """
    from launch.ray_job import drive

    return drive(run)


app.command(shards, name="shards", help="Build, verify and look into shard folders.")
app.command(checkpoint, name="checkpoint", help="Look into checkpoints.")
app.command(submit, name="submit", help="Hand a run to Slurm or to a Ray cluster.")


def gathered_overrides(arguments: Sequence[str]) -> list[str]:
    """Gather `a.b=c`, `--a.b c` and `--a.b=c` from anywhere into one `--overrides` at the end.

    The parser wants words of one kind together; people write them where they think of them.
    """
    words, overrides = [], []
    rest = iter(arguments)
    for word in rest:
        if word in _KEEP_NEXT:
            words.append("=".join([word, *itertools.islice(rest, 1)]))
        elif _PLAIN.match(word):
            overrides.append(word)
        elif not _DASHED.match(word):
            words.append(word)
        elif "=" in word:
            overrides.append(word.lstrip("-"))
        else:
            value = next(rest, None)
            if value is None:
                raise UserError(f"{word} needs a value")
            overrides.append(f"{word.lstrip('-')}={value}")
    return [*words, *(["--overrides", *overrides] if overrides else [])]


def _print_scores(evaluations: dict[str, Any]) -> None:
    from launch.train import print_scores

    print_scores(evaluations)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leaves through SystemExit with the exit code."""
    try:
        code = app.cli(args=gathered_overrides(sys.argv[1:] if arguments is None else arguments), prog="subspace")
    except UserError as error:
        print(f"subspace: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
