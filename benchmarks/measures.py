"""What the source looks like in numbers: files, lines, functions, types, mirrored tests, import cycles.

subspace bench measures

Counted are the files of the four packages that are not empty. A file is as long as its lines, empty ones included; a
function (methods and inner ones too) from its `def` to its last line, docstring included. A function is typed when all
its parameters but `self` and `cls`, and what it returns, have annotations. A module has a mirrored test when
tests/PATH/test_NAME.py is there. Modules, or rooms, are in a cycle when each reaches the other by imports, at the top
or inside functions. Prints Markdown for docs/architecture.md; with a path writes JSON there.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.source import ROOT, cycles, files, imports, room_of

MOST_FILE, MOST_FUNCTION = 350, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Length(NamedTuple):
    """How many lines something has, and where it is."""

    lines: int
    where: str


def file_lengths(paths: list[Path], root: Path = ROOT) -> list[Length]:
    """Return the length of every file, the longest first."""
    found = [Length(len(path.read_text(encoding="utf-8").splitlines()), _name(path, root)) for path in paths]
    return sorted(found, reverse=True)


def functions(path: Path, root: Path = ROOT) -> Iterator[tuple[Length, bool]]:
    """Yield the length of every function of a file, and whether it is typed."""
    yield from _below(ast.parse(path.read_text(encoding="utf-8")), f"{_name(path, root)} ")


def _below(node: ast.AST, before: str) -> Iterator[tuple[Length, bool]]:
    for child in ast.iter_child_nodes(node):
        name = before
        if isinstance(child, Function | ast.ClassDef):
            name = f"{before}{child.name}."
        if isinstance(child, Function):
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            yield Length(lines, f"{name[:-1]}()"), is_typed(child)
        yield from _below(child, name)


def is_typed(function: Function) -> bool:
    """Return whether what goes in and what comes out is annotated."""
    given = function.args
    named = [*given.posonlyargs, *given.args]
    own = named[1:] if named and named[0].arg in ("self", "cls") else named
    others = [each for each in (given.vararg, given.kwarg) if each is not None]
    return function.returns is not None and all(each.annotation for each in [*own, *given.kwonlyargs, *others])


def mirrored(path: Path, root: Path = ROOT) -> bool:
    """Return whether a test lies where a module's test is looked for."""
    return (root / "tests" / path.relative_to(root).parent / f"test_{path.name}").exists()


def imports_distributed(path: Path) -> bool:
    """Return whether a file imports torch.distributed, or something of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{each.name}" for each in node.names]
        if any(f"{name}.".startswith("torch.distributed.") for name in names):
            return True
    return False


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def measured() -> dict[str, Any]:
    """Return all figures."""
    paths = files()
    of_files = file_lengths(paths)
    of_functions = [each for path in paths for each in functions(path)]
    lengths = sorted((length for length, _ in of_functions), reverse=True)
    modules = [path for path in paths if not path.name.startswith("__")]
    found = imports()
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, others in found.items():
        rooms[room_of(module)] |= {room_of(each) for each in others}
    return {
        "files": len(of_files),
        "lines": sum(each.lines for each in of_files),
        "median_file": median(each.lines for each in of_files),
        "longest_file": of_files[0],
        "functions": len(lengths),
        "median_function": median(each.lines for each in lengths),
        "longest_function": lengths[0],
        "typed": sum(typed for _, typed in of_functions),
        "modules": len(modules),
        "mirrored": sum(mirrored(path) for path in modules),
        "distributed": [_name(path, ROOT) for path in paths if imports_distributed(path)],
        "cycles_of_modules": cycles(found),
        "cycles_of_rooms": cycles(rooms),
        "long_files": [each for each in of_files if each.lines > MOST_FILE],
        "long_functions": [each for each in lengths if each.lines > MOST_FUNCTION],
        "without_test": [_name(path, ROOT) for path in modules if not mirrored(path)],
    }


def row(found: dict[str, Any]) -> str:
    """Return the figures as a row of the page's table."""
    typed = f"{100 * found['typed'] // found['functions']} %"
    cells = [
        "**Subspace**",
        f"{found['median_file']:g}/{found['longest_file'].lines}",
        f"{found['median_function']:g}/{found['longest_function'].lines}",
        typed,
        f"{found['mirrored']}/{found['modules']}",
        str(len(found["distributed"])),
        f"{len(found['cycles_of_rooms'])} sets of rooms, {len(found['cycles_of_modules'])} of files",
    ]
    return f"| {' | '.join(cells)} |"


def page(found: dict[str, Any]) -> str:
    """Return what docs/architecture.md says of the figures."""
    numbers = f"{found['files']} files of {found['lines']:,} lines, {found['functions']:,} functions."
    lists = {
        f"Files above {MOST_FILE} lines": [f"`{each.where}` {each.lines}" for each in found["long_files"]],
        f"Functions above {MOST_FUNCTION} lines": [
            f"`{each.where.replace(' ', '` `')}` {each.lines}" for each in found["long_functions"]
        ],
        "Files that import each other": [_code(each) for each in found["cycles_of_modules"]],
        "Rooms that import each other": [_code(each) for each in found["cycles_of_rooms"]],
        "Files that import torch.distributed": [f"`{each}`" for each in found["distributed"]],
    }
    lines = [f"* {name}: {'; '.join(each) or 'none'}." for name, each in lists.items()]
    return "\n".join([row(found), "", numbers, "", *lines])


def _code(names: list[str]) -> str:
    return ", ".join(f"`{each}`" for each in names)


def main() -> None:
    found = measured()
    print(page(found))
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
