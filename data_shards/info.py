"""What a shard folder holds, as a dict (for --json) and as a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from data_shards.errors import printable
from data_shards.manifest import read_manifest


def info(dest: Path | str) -> dict[str, Any]:
    """Return name, form, counts[split][class], sizes and warnings of a shard folder; reads the manifest only."""
    manifest = read_manifest(Path(dest))
    return {
        "path": str(dest),
        "name": manifest.name,
        "source": manifest.source,
        "stored": manifest.stored,
        "image_size": manifest.image_size,
        "channels": manifest.channels,
        "fit": manifest.fit,
        "num_classes": len(manifest.classes),
        "classes": list(manifest.classes),
        "num_images": {split: manifest.num_rows(split) for split in manifest.splits},
        "counts": manifest.counts,
        "num_shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "factors": list(manifest.factors),
        "has_masks": manifest.has_masks,
        "rejected": manifest.rejected,
        "warnings": list(manifest.warnings),
        "created_with": manifest.created_with,
    }


def render_info(content: dict[str, Any]) -> RenderableType:
    """Return what `info` found for a rich console: a headline, images per class and split, warnings."""
    side = f"{content['image_size']} px" if content["image_size"] else "original sizes"
    colour = "gray" if content["channels"] == 1 else "RGB"
    headline = (
        f"{content['name']}: {sum(content['num_images'].values()):,} images, {content['num_classes']} classes, "
        f"{side} {colour}, stored {content['stored']}, {content['num_shards']} shards, {content['bytes'] / 1e6:,.1f} MB"
    )
    extras = [f"factors {', '.join(content['factors'])}"] if content["factors"] else []
    extras += ["masks"] if content["has_masks"] else []
    lines = [
        Text(printable(headline), style="bold"),
        *([Text(printable(f"with {' and '.join(extras)}"))] if extras else []),
    ]
    return Group(
        *lines, _table(content), *(Text(printable(f"Warning: {text}"), style="yellow") for text in content["warnings"])
    )


def _table(content: dict[str, Any], most: int = 40) -> Table:
    splits = list(content["num_images"])
    table = Table("class", box=None, pad_edge=False)
    for split in splits:
        table.add_column(split, justify="right")
    for name in content["classes"][:most]:
        table.add_row(Text(printable(name)), *(f"{content['counts'][split][name]:,}" for split in splits))
    if (hidden := len(content["classes"]) - most) > 0:
        table.add_row(f"... {hidden:,} more", *("" for _ in splits))
    table.add_row("all", *(f"{content['num_images'][split]:,}" for split in splits), style="bold")
    return table
