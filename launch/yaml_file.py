"""The one place that reads YAML: plain values only, at most as much of it as a person writes.

Refused before anything is built: files that are no plain files, more than 256 KiB (a configuration has five, and the
Python parser takes a second for that much), more than 32 levels or 20,000 events, aliases (nine lines of them unfold to
a billion values), tags, keys given twice, several documents.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from data_shards.errors import UserError
from data_shards.files import open_plain
from launch.plain_values import MAX_DEPTH

MAX_BYTES = 256 << 10
MAX_EVENTS = 20_000
MAX_DIGITS = 64
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _Loader(_Base):  # type: ignore[misc]
    """SafeLoader without dates and merges, whose mappings have every key once and whose numbers are short."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in ("timestamp", "merge", "value")]
        for first, pairs in _Base.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping of a node."""
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key is given twice", problem_mark=node.start_mark)
        return mapping


def _number(kind: str) -> Any:
    def construct(loader: Any, node: Any) -> Any:
        # Python takes minutes for a number of a million digits in base 60, which YAML has.
        if len(node.value) > MAX_DIGITS:
            raise yaml.MarkedYAMLError(problem="a number has too many digits", problem_mark=node.start_mark)
        return getattr(loader, f"construct_yaml_{kind}")(node)

    return construct


_Loader.add_constructor(_INT, _number("int"))
_Loader.add_constructor(_FLOAT, _number("float"))


def parse(text: str, where: str) -> Any:
    """Return the value that a YAML document stands for.

    Raises:
        UserError: it is none, or larger than anybody writes.
    """
    try:
        if len(text) > MAX_BYTES:
            raise yaml.YAMLError(f"it has more than {MAX_BYTES >> 10} KiB")
        _check_events(text)
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{where} is not valid YAML: {_sentence(error)}") from None


def _check_events(text: str) -> None:
    """Refuse by the stream of events, which is made piece by piece: nothing is built for what is refused."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases are not taken; write the value where it is used"
        elif getattr(event, "tag", None) is not None:
            problem = "tags are not taken"
        elif depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} levels"
        elif count > MAX_EVENTS:
            problem = f"more than {MAX_EVENTS:,} values"
        if problem:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _sentence(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error).splitlines()[0]
    return f"line {mark.line + 1}: {getattr(error, 'problem', None)}"


def read_text(path: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        UserError: there is none, or it cannot be one.
    """
    try:
        with open_plain(path, MAX_BYTES, follow=True) as file:
            return file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: byte {error.start} is not UTF-8") from None


def read(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        UserError: as `read_text` and `parse`, or it holds no mapping.
    """
    tree = parse(read_text(path), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no configuration: expected sections such as 'data:' and 'train:'")
    return tree
