"""Which settings of a run are not those of the configuration file that it was started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards.errors import UserError
from launch.config import load_config
from launch.report.collect import Record, Run

MAX_CHARS = 120


def settings_diff(run: Run) -> Record | None:
    """Return {"preset": its name, "rows": [(setting, preset's value, run's value)]}.

    None where the command names no file that is here and can be read: then nobody knows.
    """
    path = preset_of(run)
    if path is None:
        return None
    try:
        preset = load_config(path)
    except UserError:
        return None
    before, after = leaves(preset.model_dump(mode="json")), leaves(run.config)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {"preset": path.name, "rows": [(name, _text(before.get(name)), _text(after.get(name))) for name in names]}


def preset_of(run: Run) -> Path | None:
    """Return the configuration file of `subspace train FILE ...`, as the run saw it or beside the run."""
    command = run.env.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    if words[1:2] != ["train"]:
        return None
    named = next((word for word in words[2:] if word.endswith((".yaml", ".yml")) and "=" not in word), None)
    if named is None:
        return None
    path = Path(named)
    tried = [path, *([] if path.is_absolute() else [parent / path for parent in run.path.resolve().parents])]
    return next((found for found in tried if found.is_file()), None)


def leaves(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return {dotted name: value} of a nested mapping; lists are values."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found.update(leaves(value, f"{before}{name}."))
        else:
            found[f"{before}{name}"] = value
    return found


def _text(value: Any) -> str:
    text = "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
