"""`subspace shards ...`: build, verify and look into shard folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg
from tyro.extras import SubcommandApp

from data_shards.errors import printable

shards = SubcommandApp()


@shards.command
def build(
    source: Positional[str],
    dest: Positional[Path],
    /,
    *,
    overrides: tuple[str, ...] = (),
    size: int | None = None,
    stored: Literal["raw", "png", "jpeg", "as-is"] | None = None,
    fit: Literal["crop", "pad", "stretch"] | None = None,
    shard_mb: int = 64,
    group: str | None = None,
    strict: bool = False,
    num_workers: int = 1,
) -> int:
    """Build a shard folder from images.

    Args:
        source: folder:PATH, table:LABELS.csv, isic19:PATH, mura:PATH, hyperkvasir:PATH, kimia_path24:PATH, retina:PATH,
            kaggle_dr:PATH, chest:PATH, wsi:PATH, dicom:PATH, digits, phantoms, vessels.
        dest: the folder to make; must not exist.
        overrides: key=value options of the source, anywhere.
        size: side of the stored images in pixels; as they are when not given.
        stored: how images are stored.
        fit: how images become square; crop, unless the source has another way.
        shard_mb: size of a shard in MiB.
        group: column of the table that must not cross splits; 'none' for none.
        strict: fail on the first image that cannot be read, instead of listing it in rejected.csv.
        num_workers: decoding processes; each may take 2 GiB of memory and a minute for an image.
    """
    from data_shards.build import build as run_build
    from launch.overrides import parse_overrides

    given = {**parse_overrides(list(overrides)), **({"group": group} if group is not None else {})}
    manifest = run_build(source, dest, size, stored, fit, shard_mb, strict, given, sys.stderr.isatty(), num_workers)
    for warning in manifest.warnings:
        print(f"note: {printable(warning)}", file=sys.stderr)
    return info(dest)


@shards.command
def verify(folder: Positional[Path], /) -> int:
    """Check every byte of a shard folder; exit code 3 and the damaged shard's name when something changed.

    Args:
        folder: the shard folder.
    """
    from data_shards.verify import verify as run_verify

    problems = run_verify(folder, sys.stderr.isatty())
    for problem in problems:
        print(printable(problem))
    if not problems:
        print(f"{folder}: all shards are what was written")
    return 3 if problems else 0


@shards.command
def info(folder: Positional[Path], /, *, as_json: Annotated[bool, arg(name="json")] = False) -> int:
    """Show what a shard folder holds.

    Args:
        folder: the shard folder.
        as_json: print as JSON.
    """
    from data_shards.info import info as read_info
    from data_shards.info import render_info

    content = read_info(folder)
    if as_json:
        print(json.dumps(content))
        return 0
    from rich.console import Console

    Console().print(render_info(content))
    return 0
