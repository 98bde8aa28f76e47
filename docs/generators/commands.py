"""The reference of commands: what `subspace COMMAND --help` says of each, as Markdown.

The text of the help itself is read, at a width at which nothing is broken over lines: what it does not say is not here.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from launch.cli import app

WIDTH = "400"
TITLE = re.compile(r"^╭─ (?P<title>.+?) ─+╮$")


@dataclass
class Help:
    """One command: its words, usage, description, arguments (how, meaning) and the names of its subcommands."""

    words: tuple[str, ...]
    usage: str = ""
    about: str = ""
    arguments: list[tuple[str, str]] = field(default_factory=list)
    subcommands: list[str] = field(default_factory=list)


def commands(words: tuple[str, ...] = ()) -> Iterator[Help]:
    """Yield every command from `words` on, depth first."""
    found = parsed(words, help_text(words))
    yield found
    for name in found.subcommands:
        yield from commands((*words, name))


def help_text(words: tuple[str, ...]) -> str:
    """Return what `subspace WORDS --help` prints."""
    printed, columns = io.BytesIO(), os.environ.get("COLUMNS")
    out = io.TextIOWrapper(printed, encoding="utf-8")  # what is known to take UTF-8 gets boxes with corners
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            app.cli(args=[*words, "--help"], prog="subspace")
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    out.flush()
    return printed.getvalue().decode().replace(sys.executable, "python")


def parsed(words: tuple[str, ...], text: str) -> Help:
    """Return the parts of a help text."""
    found, title, prose = Help(words), "", []
    for line in text.splitlines():
        if match := TITLE.match(line):
            title = match["title"]
        elif line.startswith("│"):
            _boxed(found, title, line.strip("│").rstrip()[1:])
        elif line.startswith("usage: "):
            found.usage = line.removeprefix("usage: ")
        elif not line.startswith("╰"):
            prose.append(line.strip())
    found.about = " ".join(filter(None, prose))
    return found


def _boxed(found: Help, title: str, line: str) -> None:
    """Take up one line of a box: an argument, what one means, or a subcommand."""
    if title.startswith("subcommands"):
        if match := re.match(r"\s*• (\S+)", line):
            found.subcommands.append(match[1])
        return
    if line.startswith(" ") and found.arguments:
        how, meaning = found.arguments[-1]
        found.arguments[-1] = (how, f"{meaning} {line.strip()}".strip())
        return
    how, _, meaning = line.partition("  ")
    found.arguments.append((how.strip(), meaning.strip()))


def page() -> str:
    """Return the Markdown of all commands."""
    lines: list[str] = []
    for found in commands():
        if found.subcommands and not found.words:
            continue
        lines += [f"{'#' * (1 + len(found.words))} subspace {' '.join(found.words)}", "", _plain(found.about), ""]
        if found.subcommands:
            continue
        lines += [
            "```text",
            found.usage,
            "```",
            "",
            '<div class="stacked" markdown>',
            "",
            "| argument | meaning |",
            "|---|---|",
        ]
        lines += [f"| `{how.replace('{None}|', '')}` | {_plain(_cell(meaning))} |" for how, meaning in found.arguments]
        lines += ["", "</div>", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    """Keep Markdown from reading signs outside backticks as its own."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"(?<!\\)([<>*_\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)
