"""The command line as a shell sees it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_knows_the_commands(shell: str, cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("completion", shell)
    assert code == 0
    assert all(word in out for word in ("subspace", "export", "doctor", "dry-run"))
    if shutil.which(shell):
        (tmp_path / "script").write_text(out)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_completion_of_bash_completes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(cli("completion", "bash")[1])
    ask = """
    source "$1"
    COMP_WORDS=(subspace expo); COMP_CWORD=1; COMP_LINE="subspace expo"; COMP_POINT=13
    $(complete -p subspace | sed 's/.*-F \\([^ ]*\\).*/\\1/') subspace expo subspace
    echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", ask, "-", tmp_path / "script"], capture_output=True, text=True)
    assert done.stdout.split() == ["export"], done.stderr
