"""The picture of docs/architecture.md: rooms of the source, and arrows where a file of one imports a file of another.

subspace bench architecture --out docs/images/architecture.svg

Every room has its place here; a room without one ends the drawing. Arrows inside a storey lead from room to room. What
a room imports from the storeys below stands in it, and the arrows between storeys are the sums of that. Each number
counts pairs of files of which the first imports the second.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.source import STOREYS, between_rooms, imports, room_of

WIDTH, HEIGHT = 1120, 972
COLOURS = ("#0f766e", "#b45309", "#7c3aed", "#be185d", "#1d6fb8", "#4d7c0f", "#475569")
DARK_COLOURS = ("#5eead4", "#fbbf24", "#c4b5fd", "#f9a8d4", "#7cc4ff", "#bef264", "#cbd5e1")


class Box(NamedTuple):
    """A rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Arrow:
    """One arrow: two names, a count, a path and where its number stands."""

    source: str
    target: str
    count: int
    path: str
    label: tuple[float, float]


def _row(names: tuple[str, ...], y: float, width: float, gap: float) -> dict[str, Box]:
    return {name: Box(40 + place * (width + gap), y, width, 64) for place, name in enumerate(names)}


PLANS = {
    "launch": Box(20, 16, 980, 250),
    "trainer": Box(20, 304, 980, 366),
    "cluster": Box(20, 708, 980, 100),
    "data_shards": Box(20, 846, 980, 106),
}
HALLS = {"launch": Box(40, 46, 940, 56), "trainer": Box(40, 334, 940, 56)}
ROOMS = {
    **HALLS,
    **_row(("launch.compare", "launch.report", "launch.retrieval", "launch.dashboard"), 186, 204, 41),
    **_row(("trainer.engines", "trainer.objectives", "trainer.segmentation", "trainer.metrics"), 454, 176, 64),
    **_row(("trainer.subspaces", "trainer.losses", "trainer.backbones", "trainer.heads"), 590, 176, 64),
    "cluster": Box(40, 738, 940, 56),
    "data_shards": Box(40, 874, 560, 60),
    "data_shards.sources": Box(720, 874, 260, 60),
}
# Arrows between a hall and the row behind the first one go through the gaps of the first: their x, of both ends.
GAPS = {
    "trainer.subspaces": (232.0, 182.0),
    "trainer.losses": (464.0, 420.0),
    "trainer.backbones": (708.0, 662.0),
    "trainer.heads": (956.0, 908.0),
}
LANES = {("launch", "cluster"): 1020.0, ("launch", "data_shards"): 1086.0, ("trainer", "data_shards"): 1053.0}


def storey_of(room: str) -> str:
    """Return the storey that a room is on."""
    return room.partition(".")[0]


def to_storeys(edges: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Return how much each room imports from each other storey."""
    found: Counter[tuple[str, str]] = Counter()
    for (room, other), count in edges.items():
        if storey_of(room) != storey_of(other):
            found[room, storey_of(other)] += count
    return found


def inside(edges: Counter[tuple[str, str]]) -> list[Arrow]:
    """Return the arrows between rooms of one storey."""
    chosen = {pair: count for pair, count in edges.items() if storey_of(pair[0]) == storey_of(pair[1])}
    ports = _ports(list(chosen))
    return [_arrow(*pair, count, ports) for pair, count in sorted(chosen.items())]


def _ports(pairs: list[tuple[str, str]]) -> dict[tuple[str, str, str], float]:
    """Return the x of each end of arrows between two rows of rooms, spread over the side that they are at."""
    ends: dict[tuple[str, bool], list[tuple[float, int, tuple[str, str]]]] = {}
    for pair in pairs:
        if _beside(*pair) or (set(pair) & set(GAPS) and set(pair) & set(HALLS)):
            continue
        source, target = pair
        for room, other, order in ((source, target, 0), (target, source, 1)):
            is_below = ROOMS[other].y > ROOMS[room].y
            ends.setdefault((room, is_below), []).append((ROOMS[other].middle[0], order, pair))
    found = {}
    for (room, _), held in ends.items():
        for place, (_, _, pair) in enumerate(sorted(held)):
            found[pair[0], pair[1], room] = ROOMS[room].x + ROOMS[room].width * (place + 1) / (len(held) + 1)
    for source, target in pairs:
        for hall, other in ((source, target), (target, source)):
            if hall in HALLS and (source, target, other) in found:
                found[source, target, hall] = found[source, target, other]
    return found


def _beside(source: str, target: str) -> bool:
    return ROOMS[source].y == ROOMS[target].y


def _arrow(source: str, target: str, count: int, ports: dict[tuple[str, str, str], float]) -> Arrow:
    one, other = ROOMS[source], ROOMS[target]
    if _beside(source, target):
        way = 1 if other.x > one.x else -1
        start, end = (one.right, other.x) if way > 0 else (one.x, other.right)
        y = one.middle[1] + 12 * way
        return Arrow(source, target, count, f"M{start} {y} H{end - 2 * way}", ((start + end) / 2, y - 5))
    way = 1 if other.y > one.y else -1
    top, bottom = (one.bottom, other.y) if way > 0 else (one.y, other.bottom)
    tip = bottom - 2 * way
    if (source, target, source) in ports:
        start, end = ports[source, target, source], ports[source, target, target]
        bend = (tip - top) * 0.55
        path = f"M{start:.0f} {top} C{start:.0f} {top + bend:.0f} {end:.0f} {tip - bend:.0f} {end:.0f} {tip}"
        share = 0.5 if start == end else 0.24
        return Arrow(source, target, count, path, _on_curve(share, (start, top), (end, tip), bend))
    room = next(each for each in (source, target) if each in GAPS)
    shift = 0 if way > 0 else 20  # the way back is beside the way there
    gap, port = GAPS[room][0] + shift, GAPS[room][1] + shift
    turn = ROOMS["trainer.engines"].bottom
    if way > 0:
        path = f"M{gap} {top} V{turn} C{gap} {turn + 40} {port} {tip - 40} {port} {tip}"
    else:
        path = f"M{port} {top} C{port} {top - 40} {gap} {turn + 40} {gap} {turn} V{tip}"
    return Arrow(source, target, count, path, (gap, (HALLS["trainer"].bottom + turn) / 2))


def _on_curve(share: float, start: tuple[float, float], end: tuple[float, float], bend: float) -> tuple[float, float]:
    """Return a point of a curve that leaves and arrives upright."""
    left = 1 - share
    weights = (left**3, 3 * left**2 * share, 3 * left * share**2, share**3)
    heights = (start[1], start[1] + bend, end[1] - bend, end[1])
    x = start[0] * (weights[0] + weights[1]) + end[0] * (weights[2] + weights[3])
    return x, sum(weight * height for weight, height in zip(weights, heights, strict=True)) + 4


def outside(sums: Counter[tuple[str, str]]) -> list[Arrow]:
    """Return the arrows between storeys."""
    totals: Counter[tuple[str, str]] = Counter()
    for (room, storey), count in sums.items():
        totals[storey_of(room), storey] += count
    found = []
    for (source, target), count in sorted(totals.items()):
        one, other = PLANS[source], PLANS[target]
        if (source, target) in LANES:
            lane, up = LANES[source, target], one.y + 40 + 14 * STOREYS.index(target)
            down = other.y + 24 + 18 * STOREYS.index(source)
            path = f"M{one.right} {up} H{lane} V{down} H{other.right + 2}"
            found.append(Arrow(source, target, count, path, (lane, (up + down) / 2)))
        else:
            x = one.middle[0]
            path = f"M{x} {one.bottom} V{other.y - 2}"
            found.append(Arrow(source, target, count, path, (x + 22, (one.bottom + other.y) / 2 + 4)))
    return found


def drawn(found: dict[str, set[str]]) -> str:
    """Return the picture of an import graph as SVG.

    Raises:
        SystemExit: a room has no place yet.
    """
    number = Counter(room_of(module) for module in found if room_of(module) != module)
    edges = between_rooms(found)
    if missing := {room for pair in edges for room in pair} - set(ROOMS):
        raise SystemExit(f"give {', '.join(sorted(missing))} a place in ROOMS of benchmarks/architecture.py")
    sums = to_storeys(edges)
    parts = [_plan(storey) for storey in STOREYS]
    parts += [_drawn_arrow(arrow, "storeys", STOREYS.index(arrow.source)) for arrow in outside(sums)]
    parts += [_drawn_arrow(arrow, "rooms", _colour(arrow.source)) for arrow in inside(edges)]
    parts += [_room(room, number[room], sums) for room in ROOMS]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>Rooms of the source and the imports between them</title>"
    return "\n".join(
        [head, title, _style(), _tips(), '<rect class="page" width="100%" height="100%"/>', *parts, "</svg>\n"]
    )


def _colour(room: str) -> int:
    return [each for each in ROOMS if storey_of(each) == storey_of(room)].index(room) % len(COLOURS)


def _plan(storey: str) -> str:
    box = PLANS[storey]
    shape = f'<rect class="storey" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="10"/>'
    return f'{shape}<text class="storey-name" x="{box.x + 14}" y="{box.y + 19}">{storey}/</text>'


def _drawn_arrow(arrow: Arrow, kind: str, colour: int) -> str:
    width = 1.2 + min(arrow.count, 60) ** 0.5 / 3
    facts = f'data-kind="{kind}" data-from="{arrow.source}" data-to="{arrow.target}" data-count="{arrow.count}"'
    line = f'<path class="c{colour}" d="{arrow.path}" stroke-width="{width:.1f}" marker-end="url(#t{colour})" {facts}/>'
    x, y = arrow.label
    return f'{line}<text class="number n{colour}" x="{x:.0f}" y="{y:.0f}">{arrow.count}</text>'


def _room(room: str, number: int, sums: Counter[tuple[str, str]]) -> str:
    box, (x, y) = ROOMS[room], ROOMS[room].middle
    used = [(storey, sums[room, storey]) for storey in STOREYS if sums[room, storey]]
    name = room.rpartition(".")[2] + ("/" if "." in room else "/*.py")
    spans = ", ".join(
        f'<tspan data-kind="lower" data-from="{room}" data-to="{storey}" data-count="{count}">{storey} {count}</tspan>'
        for storey, count in used
    )
    lines = [
        f'<rect class="room" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="7"/>',
        f'<text class="name" x="{x}" y="{y - 6 if used else y + 1}">{name}'
        f'<tspan class="small" dx="7">{number} files</tspan></text>',
    ]
    if used:
        lines.append(f'<text class="small" x="{x}" y="{y + 14}">{spans}</text>')
    return "".join(lines)


def _style() -> str:
    def colours(values: tuple[str, ...]) -> str:
        return "".join(
            f".c{i} {{ stroke: {value}; }} .n{i}, .t{i} {{ fill: {value}; }}\n" for i, value in enumerate(values)
        )

    return f"""<style>
svg {{ font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }}
text {{ fill: #1f2933; text-anchor: middle; }}
path[data-kind] {{ fill: none; }}
.page {{ fill: #ffffff; }} .storey {{ fill: #eef3f4; stroke: #b8c7ca; }} .room {{ fill: #ffffff; stroke: #7b8b8f; }}
.name {{ font-size: 15px; font-weight: 600; }} .small {{ font-size: 11px; font-weight: 400; fill: #51606b; }}
.storey-name {{ font-size: 13px; font-weight: 700; text-anchor: start; fill: #51606b; }}
.number {{ font-size: 13px; font-weight: 700; paint-order: stroke; stroke: #eef3f4; stroke-width: 4px; }}
{colours(COLOURS)}@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3; }}
.page {{ fill: #14181d; }} .storey {{ fill: #1f262d; stroke: #46535c; }} .room {{ fill: #2a333c; stroke: #8696a0; }}
.small, .storey-name {{ fill: #b3c0ca; }} .number {{ stroke: #1f262d; }}
{colours(DARK_COLOURS)}}}
</style>"""


def _tips() -> str:
    made = [
        f'<marker id="t{i}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" orient="auto" '
        f'markerUnits="userSpaceOnUse"><path class="t{i}" d="M0 0 L8 4 L0 8 z"/></marker>'
        for i in range(len(COLOURS))
    ]
    return f"<defs>{''.join(made)}</defs>"


def main() -> None:
    picture = drawn(imports())
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(picture, encoding="utf-8")
    else:
        print(picture)


if __name__ == "__main__":
    main()
