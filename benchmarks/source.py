"""The source as it stands: its files, the rooms that they are in, and which file imports which.

A room is a package or a sub-package, with the files that lie in it directly. This is what `architecture` and `measures`
share; who imports whom is asked of grimp, on which import-linter stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import grimp
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).parents[1]
STOREYS = ("launch", "trainer", "cluster", "data_shards")
Imports = Mapping[str, set[str]]


def files(root: Path = ROOT) -> list[Path]:
    """Return the files of the source that are not empty, in order."""
    found = [path for storey in STOREYS for path in sorted((root / storey).rglob("*.py"))]
    return [path for path in found if path.read_text(encoding="utf-8").strip()]


def imports() -> dict[str, set[str]]:
    """Return for every module of the source those that it imports, at its top or inside a function."""
    graph = grimp.build_graph(*STOREYS, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in sorted(graph.modules)}


def room_of(module: str) -> str:
    """Return the room of a module; a package is its own."""
    return module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]


def between_rooms(found: Imports) -> Counter[tuple[str, str]]:
    """Return for two rooms how many pairs of files there are of which the first imports the second."""
    pairs = [(room_of(module), room_of(each)) for module, others in found.items() for each in others]
    return Counter((room, other) for room, other in pairs if room != other)


def cycles(found: Imports) -> list[list[str]]:
    """Return the sets of modules, or of rooms, that reach each other by imports; those of one are left out."""
    names = sorted({*found, *(each for others in found.values() for each in others)})
    places = {name: place for place, name in enumerate(names)}
    pairs = [(places[name], places[each]) for name, others in found.items() for each in others]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    matrix = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    number, labels = connected_components(matrix, connection="strong")
    groups = [[names[place] for place in np.flatnonzero(labels == label)] for label in range(number)]
    return sorted(group for group in groups if len(group) > 1)
