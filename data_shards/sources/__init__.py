"""Where images come from. Each module has one function `read(path, **options) -> Listing`; the table below names them.

Modules are imported when they are asked for, so that DICOM or scikit-learn cost nothing to those who do not use them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_shards.errors import UserError, nearest_of
from data_shards.sources.listing import Listing, Record

__all__ = ["SOURCES", "Listing", "Record", "option_defaults", "read_source"]

# name -> (module, what the path is; "" = no path)
SOURCES: dict[str, tuple[str, str]] = {
    "folder": ("data_shards.sources.folder", "folder"),
    "table": ("data_shards.sources.table", "file"),
    "isic19": ("data_shards.sources.isic19", "folder"),
    "mura": ("data_shards.sources.mura", "folder"),
    "hyperkvasir": ("data_shards.sources.hyperkvasir", "folder"),
    "kimia_path24": ("data_shards.sources.kimia_path24", "folder or file"),
    "retina": ("data_shards.sources.retina", "folder"),
    "kaggle_dr": ("data_shards.sources.kaggle_dr", "folder"),
    "chest": ("data_shards.sources.chest", "folder"),
    "wsi": ("data_shards.sources.wsi", "folder or file"),
    "dicom": ("data_shards.sources.dicom", "folder or file"),
    "digits": ("data_shards.sources.digits", ""),
    "phantoms": ("data_shards.sources.phantoms", ""),
    "vessels": ("data_shards.sources.vessels", ""),
}


def read_source(source: str, options: Mapping[str, Any], size: int | None = None) -> Listing:
    """List the images of `source` ("folder:PATH", "digits", ...); `options` are keyword arguments of its `read`.

    `size` is the side asked for, so that drawn images are drawn at it. Raises UserError for unknown sources or options.
    """
    name, path = parse_source(source)
    read = _reader(name)
    defaults = option_defaults(name)
    values = {option: _typed(name, option, value, defaults) for option, value in options.items() if value is not None}
    if "pixels" in defaults and size is not None:
        values.setdefault("pixels", size)
    return read(path, **values)


def option_defaults(name: str) -> dict[str, Any]:
    """Return the options of one source and their defaults."""
    return {key: p.default for key, p in inspect.signature(_reader(name)).parameters.items() if key != "path"}


def parse_source(source: str) -> tuple[str, Path | None]:
    """Split "name:PATH" and check that the path is there; raises UserError."""
    name, _, text = source.partition(":")
    if name not in SOURCES:
        hint = nearest_of(name, list(SOURCES))
        raise UserError(f"'{source}' is not a source{hint}; use {', '.join(_usage(known) for known in SOURCES)}.")
    kind = SOURCES[name][1]
    if not kind:
        if text:
            raise UserError(f"The source '{name}' takes no path.")
        return name, None
    path = Path(text).expanduser()
    if not text or not path.exists():
        raise UserError(
            f"Source '{source}': {f'{path} does not exist' if text else f'a path is missing, use {_usage(name)}'}."
        )
    if kind == "folder" and not path.is_dir():
        raise UserError(f"Source '{source}': {path} is not a folder.")
    return name, path.absolute()


def _usage(name: str) -> str:
    kind = SOURCES[name][1]
    return name if not kind else f"{name}:PATH"


def _reader(name: str) -> Callable[..., Listing]:
    read: Callable[..., Listing] = importlib.import_module(SOURCES[name][0]).read
    return read


def _typed(name: str, option: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    """Return an option as its default's type; options without a default of their own are fractions."""
    if option not in defaults:
        known = ", ".join(defaults) or "none"
        raise UserError(
            f"The source '{name}' has no option '{option}'{nearest_of(option, list(defaults))}; it has: {known}."
        )
    kind = float if defaults[option] is None else type(defaults[option])
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
        return kind(value)
    except (TypeError, ValueError, KeyError):
        raise UserError(f"{option}={value} is not a {kind.__name__}, which '{name}' needs there.") from None
