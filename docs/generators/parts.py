"""The reference of parts: what may stand at `name` of each part of a configuration, and the arguments beside it.

Names are those of the tables in launch/, arguments those of the constructors, as launch/parts.py checks them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from launch.engines import ENGINES
from launch.networks import BACKBONES, GATES, HEADS
from launch.objective import LOSSES, MINERS
from launch.parts import GIVEN
from launch.scoring import RERANKINGS
from trainer.backbones import from_monai
from trainer.losses import library

Table = Mapping[str, Callable[..., Any]]
TABLES: dict[str, Table] = {
    "model.backbone": BACKBONES,
    "model.gate": GATES,
    "model.head": HEADS,
    "objective.loss": LOSSES,
    "objective.miner": MINERS,
    "train.engine": ENGINES,
    "evaluate.rerank": RERANKINGS,
}
LIBRARY = "https://kevinmusgrave.github.io/pytorch-metric-learning"


def arguments(setting: str, make: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Yield name and default of what a user may write beside `name`."""
    for name, parameter in inspect.signature(make).parameters.items():
        # `widths` are the blocks of a small network, and otherwise those of the embedding, which the run knows.
        if name in GIVEN and (name, setting) != ("widths", "model.backbone"):
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = parameter.default
        yield name, "required" if default is parameter.empty else f"`{_plain(default)}`"


def page() -> str:
    """Return the Markdown of all parts."""
    lines: list[str] = []
    for setting, table in TABLES.items():
        lines += [
            f"## {setting}",
            "",
            '<div class="stacked" markdown>',
            "",
            "| name | what it is | arguments and defaults |",
            "|---|---|---|",
        ]
        for name, make in table.items():
            lines.append(f"| {_row(setting, name, make)} |")
        lines += ["", "</div>", "", *_others(setting)]
    return "\n".join(lines)


def _row(setting: str, name: str, make: Callable[..., Any]) -> str:
    if name.endswith(":"):
        module = inspect.getmodule(make)
        about = _first_sentence(inspect.getdoc(module) or "")
        return f"`{name}NAME` | {about} | `levels`, `norm` and those of the network"
    given = ", ".join(f"`{argument}` {default}" for argument, default in arguments(setting, make))
    target = make.func if isinstance(make, partial) else make
    about = _first_sentence(inspect.getdoc(target) or "")
    if isinstance(make, partial) and make.keywords:
        about += " With " + ", ".join(f"{key} {value}" for key, value in make.keywords.items()) + "."
    return f"`{name}` | {about} | {given or 'none'}"


def _others(setting: str) -> list[str]:
    """Return what is there by name besides the table."""
    if setting == "model.backbone":
        networks = ", ".join(f"`monai:{name}`" for name in sorted(from_monai.MODELS))
        return [f"MONAI's: {networks}.", ""]
    kind = {"objective.loss": "losses", "objective.miner": "miners"}.get(setting)
    if kind is None:
        return []
    names = ", ".join(f"`{name}`" for name in library.names(kind))
    where = f"[{kind} of pytorch-metric-learning]({LIBRARY}/{kind}/)"
    return [f"By their class names, with their own arguments, the {where}: {names}.", ""]


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]


def _plain(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
