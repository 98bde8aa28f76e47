"""How the embedding was cut over time: bands of the growth picture, from events alone.

A growth splits one subspace, the parent: the dimensions it keeps stay its block, the rest becomes a new subspace
behind the last one. Since blocks are contiguous and in order, the stack of bands is the layout of the embedding.

Legend: D embedding width, K subspaces, `start` and `end` in completed epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Band:
    """One subspace between two changes of the partition: rows `low` .. `low + width` of the embedding."""

    subspace: int
    low: int
    width: int
    start: float
    end: float


@dataclass(frozen=True)
class Split:
    """One growth: subspace `parent` kept `kept` dimensions, subspace `child` got `given`."""

    epoch: float
    parent: int
    child: int
    kept: int
    given: int
    undone: bool


def splits(events: Sequence[Record]) -> list[Split]:
    """Return the growths, oldest first, each once: a restart may log a decision again."""
    undone = {e.get("decision_id") for e in events if e.get("event") == "rollback"} - {None}
    seen: dict[Any, Split] = {}
    for event in events:
        widths = event.get("widths")
        if event.get("event") != "growth" or not widths or len(widths) < 2:
            continue
        child = len(widths) - 1
        parent = event.get("parent")
        parent = parent if isinstance(parent, int) and 0 <= parent < child else child - 1
        identity = event.get("decision_id", (event.get("epoch"), child))
        epoch = float(event.get("epoch") or 0) + 1  # a growth is decided when its epoch is over
        seen[identity] = Split(epoch, parent, child, widths[parent], widths[child], identity in undone)
    return sorted(seen.values(), key=lambda s: s.epoch)


def partitions(events: Sequence[Record], final_widths: Sequence[int] | None) -> list[tuple[float, tuple[int, ...]]]:
    """Return (completed epochs, widths from then on), the first at 0; [] when no width is known.

    The widths before a growth are those after it with the child given back to its parent.
    """
    moments: list[tuple[float, tuple[int, ...]]] = []
    for event in events:
        if event.get("event") in ("growth", "rollback") and event.get("widths"):
            moments.append((float(event.get("epoch") or 0) + 1, tuple(event["widths"])))
    grown = splits(events)
    if not moments:
        return [(0.0, tuple(final_widths))] if final_widths else []
    first = list(moments[0][1])
    if grown and grown[0].child == len(first) - 1:
        first[grown[0].parent] += first.pop()
    return _merged_moments([(0.0, tuple(first)), *moments])


def _merged_moments(moments: list[tuple[float, tuple[int, ...]]]) -> list[tuple[float, tuple[int, ...]]]:
    kept: list[tuple[float, tuple[int, ...]]] = []
    for moment in sorted(moments, key=lambda m: m[0]):
        if not kept or kept[-1][1] != moment[1]:
            kept.append(moment)
    return kept


def bands(parts: Sequence[tuple[float, tuple[int, ...]]], num_epochs: float) -> list[Band]:
    """Return the bands of the picture: one per subspace and change of it, stacked from dimension 0 upwards."""
    drawn: list[Band] = []
    for index, (start, widths) in enumerate(parts):
        end = parts[index + 1][0] if index + 1 < len(parts) else max(num_epochs, start + 1)
        low = 0
        for subspace, width in enumerate(widths):
            _append(drawn, Band(subspace, low, width, start, end))
            low += width
    return drawn


def _append(drawn: list[Band], band: Band) -> None:
    """Add a band; one that goes on unchanged is made longer instead."""
    for index, other in enumerate(drawn):
        if other.end == band.start and replace(other, start=band.start, end=band.end) == band:
            drawn[index] = replace(other, end=band.end)
            return
    drawn.append(band)
