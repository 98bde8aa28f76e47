"""Benchmarks by name: the list, running one, and names that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.errors import UserError
from launch.bench import listed, run_benchmark

Cli = Callable[..., tuple[int, str, str]]
ONE = '''"""Counts to
three.

More."""
import json, sys

def main():
    open(sys.argv[1], "w").write(json.dumps([1, 2, 3]))

main()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "counting.py").write_text(ONE)
    (tmp_path / "benchmarks" / "helper.py").write_text('"""No benchmark."""\n')
    return tmp_path / "benchmarks"


def test_the_list_has_what_has_a_main(folder: Path) -> None:
    assert listed(folder) == [("counting", "Counts to three.")]


def test_a_benchmark_writes_its_figures(folder: Path, tmp_path: Path) -> None:
    assert run_benchmark("counting", tmp_path / "out.json", folder) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == [1, 2, 3]


def test_its_exit_code_is_ours(folder: Path) -> None:
    (folder / "failing.py").write_text("def main(): ...\n\nraise SystemExit(3)\n")
    assert run_benchmark("failing", None, folder) == 3


def test_a_misspelt_name_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match="no benchmark 'countin'; did you mean 'counting'"):
        run_benchmark("countin", None, folder)


def test_without_a_checkout_one_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="come with the source"):
        listed(tmp_path / "absent")


def test_the_command_lists_and_refuses(cli: Cli) -> None:
    code, out, _ = cli("bench")
    assert code == 0
    assert "kmeans" in out
    assert "timing" not in out
    code, _, err = cli("bench", "kmean")
    assert (code, err) == (2, "subspace: there is no benchmark 'kmean'; did you mean 'kmeans'?\n")
