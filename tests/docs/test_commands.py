"""The reference of commands against the functions behind them."""

from __future__ import annotations

import re

from docs.generators import commands
from launch.cli import app, checkpoint
from launch.cli_shards import shards
from launch.cli_submit import submit

HELP = """usage: subspace do [-h] PATH

Does
a thing.

╭─ positional arguments ─────╮
│ PATH      where. (required) │
╰─────────────────────────────╯
╭─ options ───────────────────╮
│ -h, --help  show help        │
│ --long {a,b}                 │
│             one of them      │
╰──────────────────────────────╯
"""


def test_a_help_text_is_taken_apart() -> None:
    found = commands.parsed(("do",), HELP)
    assert (found.usage, found.about) == ("subspace do [-h] PATH", "Does a thing.")
    assert found.arguments == [
        ("PATH", "where. (required)"),
        ("-h, --help", "show help"),
        ("--long {a,b}", "one of them"),
    ]


def test_every_command_is_there_with_every_option() -> None:
    found = {each.words: each for each in commands.commands()}
    expected = {(name,) for name in app._subcommands}
    for words, group in (("shards", shards), ("checkpoint", checkpoint), ("submit", submit)):
        expected |= {(words, name) for name in group._subcommands}
    assert set(found) == {(), *expected}
    assert all(each.about for words, each in found.items() if words)
    assert all(meaning for each in found.values() for _, meaning in each.arguments)
    options = " ".join(how for how, _ in found[("train",)].arguments)
    for name in ("--run-dir", "--resume", "--nproc", "--deterministic", "--stop-after-step", "--dry-run"):
        assert name in options


def test_the_page_names_no_machine() -> None:
    page = commands.page()
    assert not re.search(r"/(home|usr|work|tmp|opt)/", page)
    assert "## subspace train" in page
    assert "### subspace shards build" in page
