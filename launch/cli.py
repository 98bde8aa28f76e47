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
from typing import Annotated, Literal

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from data_shards.errors import UserError
from launch.cli_bench import bench
from launch.cli_compare import compare
from launch.cli_dashboard import dashboard
from launch.cli_export import export
from launch.cli_localise import localise
from launch.cli_retrieval import index, search, serve
from launch.cli_segment import explain, segment
from launch.cli_shards import shards
from launch.cli_start import doctor, init
from launch.cli_submit import Words, submit

app = SubcommandApp()
checkpoint = SubcommandApp()
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
    overrides: Words = (),
    split: Literal["validation", "test"] = "validation",
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Score the best checkpoint of a run again.

    Args:
        run: the run folder.
        overrides: evaluate.gallery, .exclude, .rerank or .scans=value: other galleries, exclusions and orders.
        split: which split.
        as_json: print the scores as JSON.
    """
    from launch.score_table import print_scores
    from launch.train import evaluate as run_evaluate

    found = run_evaluate(run, split, overrides)
    if as_json:
        print(json.dumps(found))
    else:
        print_scores({split: found})
    return 0


@app.command
def status(
    run: Positional[Path],
    /,
    *,
    watch: bool = False,
    every: float = 2.0,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> int:
    """Show what a run is doing.

    Args:
        run: the run folder.
        watch: follow it until it ends, or Ctrl-C.
        every: seconds between two looks.
        as_json: print status.json.
    """
    if not 0.1 <= every <= 3600:
        raise UserError(f"--every must be 0.1 to 3600 seconds, got {every:g}")
    if as_json:
        from launch.status import read_status

        print(json.dumps(read_status(run)))
        return 0
    from rich.console import Console

    from launch import status_view

    if watch:
        status_view.watch(run, every)
    else:
        Console().print(status_view.view(run)[1])
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


@app.command(name="ray-job")
def ray_job(run: Positional[Path], /) -> int:
    """Be the driver of a job on a Ray cluster; started by `subspace submit ray`.

    Args:
        run: the run folder.
    """
    from launch.ray_job import drive

    return drive(run)


@app.command
def completion(shell: Positional[Literal["bash", "zsh", "fish"]], /) -> int:
    """Print the completion of a shell, for a file that it reads: see README.md.

    Args:
        shell: which one.
    """
    app.cli(args=["--tyro-print-completion", shell], prog="subspace")
    return 0


app.command(compare)
app.command(dashboard)
app.command(bench)
app.command(segment)
app.command(explain)
app.command(localise)
app.command(export)
app.command(init)
app.command(doctor)
app.command(index)
app.command(search)
app.command(serve)
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
