"""`submit slurm` without a Slurm: the script as it is rendered, its decisions, and what is refused before submitting.

tests/whole/test_slurm.py runs it for real.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.config import load_config
from launch.run_folder import take
from launch.status import write_status
from tests.runs import ROOT, environment

CONFIG = ROOT / "configs" / "smoke" / "growth.yaml"
Submit = Callable[..., tuple[object, str, str]]
SECOND = re.compile(r"\n(?=.)", re.DOTALL)


@pytest.fixture
def submit(digits: Path, tmp_path: Path, cli: Submit, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Return a function that runs `submit slurm` with more words: exit code, output, error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, nodes: int = 2) -> tuple[object, str, str]:
        return cli("submit", "slurm", CONFIG, f"data.shards={digits}", "--nodes", nodes, *words)

    return run


def directives(script: str) -> list[str]:
    """Return the words of the #SBATCH lines as sbatch reads them."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [word for line in lines for word in shlex.split(line)]


def test_dry_run_prints_the_script_and_writes_nothing(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # a laptop has no sbatch
    code, script, error = submit("--gpus-per-node", "8", "--partition", "gpu", "--cpus-per-task=96", "--dry-run")
    assert (code, error) == (0, "")
    run = tmp_path / "runs" / "smoke-growth"
    assert directives(script) == [
        "--job-name=smoke-growth",
        "--partition=gpu",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--time=24:00:00",
        "--signal=USR1@300",
        f"--chdir={tmp_path}",
        f"--output={run}/slurm/%j.out",
        "--open-mode=append",
        "--requeue",
    ]
    assert list(tmp_path.iterdir()) == []
    assert submit("--gpus-per-node", "8", "--dry-run", "--json")[0] == 0


SWEEP = ("--sweep", "seed=0,1", "--sweep", "optim.lr=1e-3,1e-4")


@pytest.mark.parametrize("words", [(), SWEEP, ("deterministic=true", "--setup", "module load cuda", *SWEEP)])
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(submit: Submit, words: tuple[str, ...]) -> None:
    script = submit(*words, "--dry-run")[1]
    done = subprocess.run(["shellcheck", "-"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_setup_options_and_overrides_find_their_places(submit: Submit) -> None:
    given = ["--setup", "A=1", "--sbatch-option", "qos=high", "--sbatch-option=--constraint=a100&ib", "--setup=B=2"]
    script = submit(*given, "train.batch_size=32", "--dry-run")[1]
    assert "\nA=1\nB=2\n" in script
    assert directives(script)[-2:] == ["--qos=high", "--constraint=a100&ib"]


def test_values_are_quoted_wherever_they_go(submit: Submit, tmp_path: Path) -> None:
    strange = 'it\'s "one" $(touch injected) `touch injected` 100% ; touch injected ;# &'
    words = ["--run-dir", strange, "--partition", strange, "--python", f"{strange}/python"]
    script = submit(*words, f"--sbatch-option=comment={strange}", "--sweep", f"data.build={strange},b", "--dry-run")[1]
    found = directives(script)
    for name in ("partition", "comment"):
        assert f"--{name}={strange}" in found
    assert f"--output={tmp_path}/{strange.replace('%', '%%')}/slurm/%A_%a.out" in found
    assert "#SBATCH --array=0-1\n" in script
    head = script[: script.index("\nstatus()")] + '\nprintf "%s\\n" "$python" "$config" "$run" "${overrides[@]}"\n'
    done = subprocess.run(
        ["bash", "-c", head],
        env={"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "7", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    python, config, run, override = done.stdout.splitlines()
    assert python == f"{strange}/python"
    assert config == f"{tmp_path}/{strange}/slurm/config.yaml"
    assert run.startswith(f"{tmp_path}/{strange}/data.build=")
    assert override == f"data.build={strange}"
    assert done.stderr == ""
    assert not list(tmp_path.rglob("injected"))


# -- what the script does once its ranks have ended


def finish(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a batch script with commands of Slurm that do nothing but write down what they were asked."""
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    for name in ("srun", "scontrol"):
        (stubs / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{stubs}/calls\n')
        (stubs / name).chmod(0o755)
    own = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    return subprocess.run(
        ["bash"],
        input=script,
        env={**environment(), **own, "PATH": f"{stubs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def requeues(folder: Path) -> int:
    return (folder / "stubs" / "calls").read_text().count("scontrol requeue 12\n")


@pytest.mark.parametrize(
    ("state", "code", "requeued"), [("completed", 0, 0), ("preempted", 0, 1), ("failed", 1, 0), ("running", 1, 0)]
)
def test_outcome_follows_the_status(submit: Submit, tmp_path: Path, state: str, code: int, requeued: int) -> None:
    script = submit("--dry-run")[1]
    write_status(tmp_path / "runs" / "smoke-growth", state=state, step=7, attempt=1)
    done = finish(script, tmp_path)
    assert (done.returncode, requeues(tmp_path)) == (code, requeued), done.stderr
    assert (done.stderr == "") == (code == 0)


def test_run_that_never_started_is_a_failure(submit: Submit, tmp_path: Path) -> None:
    done = finish(submit("--dry-run")[1], tmp_path)
    assert (done.returncode, requeues(tmp_path)) == (1, 0)
    assert "not started" in done.stderr


def test_requeues_end_when_no_attempt_makes_a_step(submit: Submit, tmp_path: Path) -> None:
    script, run = submit("--dry-run")[1], tmp_path / "runs" / "smoke-growth"
    codes = []
    for step in (5, 5, 9, 9, 9):
        write_status(run, state="preempted", step=step)
        codes.append(finish(script, tmp_path).returncode)
    assert codes == [0, 0, 0, 0, 1]
    assert requeues(tmp_path) == 4


# -- what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodes", "0"), "--nodes 0"),
        (("--gpus-per-node", "-1"), "--gpus-per-node -1"),
        (("--nproc-per-node", "0"), "--nproc-per-node 0"),
        (("--nproc-per-node", "3"), "train.batch_size 64 is not divisible by 6"),
        (("deterministic=true", "--nproc-per-node", "4"), "train.logical_shards 4 is too few for 8 ranks"),
        (("train.epoch=3",), "did you mean 'epochs'"),
        (("data.shards=nowhere",), "there are no shards at nowhere"),
        (("--signal-seconds", "0"), "--signal-seconds 0"),
        (("--time", "5"), "--time 5 leaves nothing to train"),
        (("--time", "0-00:06:00"), "leaves nothing to train"),
        (("--partition", "a\nb"), "--partition 'a\\nb' holds a line break"),
        (("name=a\x1bb",), "'name' holds a line break or a control character: 'a\\x1bb'"),
        (("--run-dir", "a\\b"), "backslash"),
        (("--sbatch-option=-X",), "--sbatch-option=-X is not NAME"),
        (("--sweep", "seed"), "--sweep 'seed' is not SETTING="),
        (("--sweep", "sed=1"), "unknown key 'sed' (did you mean 'seed'?)"),
        (("--sweep", "train.batch_size=64,63"), "train.batch_size 63 is not divisible"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    submit: Submit, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    code, output, error = submit(*words, "--dry-run")
    assert (code, output) == (2, "")
    assert said in error
    assert not SECOND.search(error)
    assert list(tmp_path.iterdir()) == []


def test_without_sbatch_the_sentence_names_the_dry_run(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, error = submit()
    assert code == 2
    assert "sbatch" in error
    assert "--dry-run" in error


def test_folder_of_another_configuration_is_refused(submit: Submit, digits: Path, tmp_path: Path) -> None:
    take(tmp_path / "run", load_config(CONFIG, [f"data.shards={digits}", "seed=1"]), "a launch")
    code, _, error = submit("--run-dir", "run", "--dry-run")
    assert code == 2
    assert "another configuration: seed was 1, now 0" in error
    assert submit("--run-dir", "run", "seed=1", "--dry-run")[0] == 0


def test_finished_points_of_a_sweep_are_left_out(submit: Submit, digits: Path, tmp_path: Path) -> None:
    done = tmp_path / "runs" / "smoke-growth" / "seed=1"
    take(done, load_config(CONFIG, [f"data.shards={digits}", "seed=1", "launch.nproc=1"]), "a launch")
    write_status(done, state="completed")
    script = submit("--sweep", "seed=0,1,2", "--dry-run")[1]
    assert "--array=0-1" in directives(script)
    assert re.findall(r"overrides=\((.+)\)", script) == ["seed=0", "seed=2"]
    assert "complete already" in submit("--sweep", "seed=1", "--dry-run")[2]


def test_only_the_template_knows_variables_of_slurm() -> None:
    """An allocation must not change what `subspace train` does: nothing may read its variables."""
    sources = [
        path for folder in ("launch", "trainer", "cluster", "data_shards") for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 50
    assert [path for path in sources if re.search(r"SLURM_|PMI_|OMPI_", path.read_text())] == []
