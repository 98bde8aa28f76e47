"""What a source hands to the build: the images in a fixed order, with label, split and group, nothing decoded yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_shards.decode import Header, UInt8Array
from data_shards.errors import UserError, nearest_of
from data_shards.field_of_view import Region


@dataclass(frozen=True)
class Record:
    """One image. `path` is stored with it; `file` is read, or `load` is called for what is not a plain image file.

    `load(channels)` gives (H, W, channels) uint8 and `header()` what is known before; both raise `decode.Unreadable`.
    `mask` gives (H, W) uint8 for masks that are drawn, or read in a way of their own; `mask_file` is a PNG beside the
    image; its values are class numbers unless `mask_above` is set: then masks are shades, scaled as such, and what is
    above that share of 255 is foreground. `beside` are the other files that `load` and `mask` read. `region` finds the
    part of an (H, W, 3) image that is stored, mask alike. `group` is the unit (patient, lesion) that must not cross
    splits, "" when there is none.
    """

    path: str
    label: str
    split: str
    group: str = ""
    file: Path | None = None
    mask_file: Path | None = None
    load: Callable[[int], UInt8Array] | None = None
    header: Callable[[], Header] | None = None
    mask: Callable[[], UInt8Array] | None = None
    mask_above: float | None = None
    beside: tuple[Path, ...] = ()
    region: Callable[[UInt8Array], Region] | None = None
    factors: Mapping[str, float] = field(default_factory=dict)


def class_names(records: Sequence[Record], wanted: str) -> tuple[str, ...]:
    """Return the classes in their order: those of `wanted` ("mel,nv,bcc"), or the sorted labels when it is "".

    Raises UserError for a label that is not wanted, naming the image.
    """
    if not wanted:
        return tuple(sorted({record.label for record in records}))
    names = tuple(name.strip() for name in wanted.split(","))
    for record in records:
        if record.label not in names:
            hint = nearest_of(record.label, list(names))
            raise UserError(f"{record.path} has the unknown class '{record.label}'{hint}; classes: {', '.join(names)}.")
    return names


@dataclass(frozen=True)
class Listing:
    """All images of a source, in the order that gives them their sample ids.

    `root` bounds where files may lie (None: nothing is read from the disk). `allow_group_overlap` is set only where a
    publisher's own split is used: the overlap is then a warning, not an error. `default_size` is the side that images
    are built with when the user names none (None: sizes stay as they are).
    """

    name: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    root: Path | None = None
    factors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    allow_group_overlap: bool = False
    default_size: int | None = None
    default_fit: str = "crop"
    fixed_size: bool = False

    def counts(self) -> dict[str, dict[str, int]]:
        """Return counts[split][class]."""
        pairs = Counter((record.split, record.label) for record in self.records)
        splits = dict.fromkeys(record.split for record in self.records)
        return {split: {name: pairs[split, name] for name in self.classes} for split in splits}
