"""`subspace submit slurm`: check what can be checked, render a batch script, hand it to sbatch.

The resolved configuration is stored beside the script, so that editing the file later cannot change a job that waits or
is requeued. Whatever a user gives is quoted, in #SBATCH lines too (sbatch understands the shell's quotes); only --setup
is shell code and meant to be.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from data_shards.errors import UserError
from data_shards.files import write_text
from launch import torchrun
from launch.config import RunConfig, dump_config, load_config
from launch.status import known_status
from launch.sweep import Point, points

PATIENCE = 3  # attempts in a row without a step before a job is no longer requeued
EARLY_S = 60  # Slurm may send the signal up to a minute before its time (man sbatch)


@dataclass(frozen=True)
class SlurmOptions:
    """What the command line says beside the configuration."""

    nodes: int
    gpus_per_node: int = 0
    nproc_per_node: int | None = None
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    cpus_per_task: int | None = None
    signal_seconds: int = 300
    run_dir: Path | None = None
    setup: str = ""
    python: str = sys.executable
    sbatch_options: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def ranks_per_node(self) -> int:
        return self.nproc_per_node or max(self.gpus_per_node, 1)


@dataclass(frozen=True)
class Submission:
    """A rendered script and, once sbatch took it, the job."""

    script: str
    run: Path
    job: str | None = None


def submit(config_path: Path, overrides: Sequence[str], options: SlurmOptions) -> Submission:
    """Check, render and submit a run or a sweep of runs; with dry_run only check and render.

    Raises:
        UserError: anything that a user can put right, before anything is written or submitted.
    """
    _check_options(options)
    if not options.dry_run and shutil.which("sbatch") is None:
        raise UserError("sbatch is not here: submit on a login node of the cluster, or look at the script by --dry-run")
    words = [*overrides, f"launch.nproc={options.ranks_per_node}"]
    config = load_config(config_path, words)
    run = Path(os.path.abspath(options.run_dir or Path("runs") / config.name))
    for what, value in (("CONFIG", str(config_path)), ("--run-dir", str(run))):
        _check_line(what, value)
    if "\\" in str(run):
        raise UserError(f"--run-dir {run}: Slurm takes no backslash in the path of its output")
    todo = _unfinished(config_path, words, run, options)
    script = render(config, config_path, run, todo, options)
    if options.dry_run:
        return Submission(script, run)
    _refuse_second_job(run)
    return Submission(script, run, _hand_over(script, config, run))


def _check_options(options: SlurmOptions) -> None:
    for name, least in (("nodes", 1), ("gpus_per_node", 0), ("nproc_per_node", 1), ("cpus_per_task", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: needs at least {least}")
    for name in ("time", "partition", "account", "python"):
        _check_line(f"--{name}", getattr(options, name) or "")
    for word in options.sbatch_options:
        _check_line("--sbatch-option", word)
        if not re.fullmatch(r"(--)?[a-z][a-z-]*(=.*)?", word):
            raise UserError(f"--sbatch-option={word} is not NAME or NAME=VALUE, as in --sbatch-option=constraint=a100")
    limit_s = _seconds(options.time)
    if not 0 < options.signal_seconds < 1 << 16:
        raise UserError(f"--signal-seconds {options.signal_seconds}: Slurm takes 1 to 65535")
    if limit_s is not None and limit_s <= options.signal_seconds + EARLY_S:
        raise UserError(
            f"--time {options.time} leaves nothing to train: the signal to save comes {options.signal_seconds} s, and"
            f" up to {EARLY_S} s more, before the end; give more --time or fewer --signal-seconds"
        )


def _check_line(what: str, value: str) -> None:
    if not value.isprintable():
        raise UserError(f"{what} {value!r} holds a line break or a control character")


def _seconds(limit: str) -> int | None:
    """Return a time limit in seconds (MINUTES[:SECONDS], H:M:S, D-H[:M[:S]]); None when it is not of that form."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:  # UNLIMITED, or a mistake that sbatch will name
        return None
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] or match[4]:
        return ((days * 24 + first) * 60 + second) * 60 + third
    return first * 60 + second


def _unfinished(config_path: Path, words: list[str], run: Path, options: SlurmOptions) -> list[tuple[Path, Point]]:
    """Return folder and point of every run that is still to be done, each checked as `subspace train` would."""
    from launch import run_folder  # torch comes with them, and a wrong option should not wait for that
    from launch.train import check

    todo = []
    for point in points(options.sweep) if options.sweep else [Point("", ())]:
        folder = run / point.name
        config = load_config(config_path, [*words, *point.overrides])
        run_folder.check(folder, config, "auto")
        check(config, options.nodes * options.ranks_per_node, build_shards=not options.dry_run)
        if known_status(folder).get("state") != "completed":
            todo.append((folder, point))
    if not todo:
        raise UserError(f"{run} is complete already; give another --run-dir to train anew")
    return todo


def render(config: RunConfig, source: Path, run: Path, todo: list[tuple[Path, Point]], options: SlurmOptions) -> str:
    """Return the batch script."""
    environment = Environment(
        loader=PackageLoader("launch", "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - a shell script; every value goes through `quoted`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = lambda value: shlex.quote(str(value))
    swept = [point for _, point in todo] if options.sweep else []
    return environment.get_template("slurm.sh.j2").render(
        title=f"{config.name}, {len(swept)} runs of a sweep" if swept else config.name,
        source=source,
        directives=list(_directives(config, run, len(swept), options)),
        setup=options.setup.strip(),
        python=options.python,
        ranks_per_node=options.ranks_per_node,
        config=run / "slurm" / "config.yaml",
        run=run,
        points=swept,
        threads=1 if config.deterministic else config.launch.threads,
        deterministic=config.deterministic,
        max_restarts=torchrun.agent_restarts(config),
        shutdown_timeout=options.signal_seconds,
        patience=PATIENCE,
    )


def _directives(config: RunConfig, run: Path, num_points: int, options: SlurmOptions) -> Iterator[str]:
    """Yield the words of the #SBATCH lines; --sbatch-option comes last, so it has the last word."""
    output = str(run / "slurm").replace("%", "%%") + ("/%A_%a.out" if num_points else "/%j.out")
    values: dict[str, Any] = {
        "job-name": config.name,
        "partition": options.partition,
        "account": options.account,
        "array": f"0-{num_points - 1}" if num_points else None,
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "time": options.time,
        "signal": f"USR1@{options.signal_seconds}",
        "chdir": os.getcwd(),
        "output": output,
    }
    yield from (f"--{name}={shlex.quote(str(value))}" for name, value in values.items() if value is not None)
    yield "--open-mode=append"
    yield "--requeue"
    for word in options.sbatch_options:
        name, equals, value = word.removeprefix("--").partition("=")
        yield f"--{name}{equals}{shlex.quote(value) if equals else ''}"


def _refuse_second_job(run: Path) -> None:
    """Raise UserError when the job that was submitted last for this folder is still in the queue."""
    record = run / "slurm" / "job_id"
    if not record.exists() or shutil.which("squeue") is None:
        return
    job = record.read_text().strip()
    asked = _slurm("squeue", "--noheader", "--format=%T", f"--jobs={job}")
    if asked.returncode == 0 and asked.stdout.strip():
        state = asked.stdout.split()[0].lower()
        raise UserError(f"job {job} of {run} is {state} and would train in the same folder: scancel {job} first")


def _hand_over(script: str, config: RunConfig, run: Path) -> str:
    """Write RUN/slurm and submit it; return the job's id. Nothing new is left when sbatch refuses."""
    folder = run / "slurm"
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_config(config))
    write_text(folder / "submit.sh", script)
    done = _slurm("sbatch", "--parsable", str(folder / "submit.sh"))
    if done.returncode != 0:
        if folder in made:
            (folder / "config.yaml").unlink()
            (folder / "submit.sh").unlink()
        for path in made:
            path.rmdir()
        said = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines())
        raise UserError(f"sbatch refused the job: {said or f'exit code {done.returncode}'}")
    job = done.stdout.strip().split(";")[0]  # "12;cluster" where there are several
    write_text(folder / "job_id", f"{job}\n")
    return job


def _slurm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
