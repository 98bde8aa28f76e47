"""retina:PATH - retinal segmentation sets as their publishers ship them, one at a time, with the masks of one target.

Sets (told by their folders, or by set=NAME): drive, rite, stare, chase_db1, hrf with the target vessel; drishti_gs with
disc, cup; idrid with disc, hard_exudates, microaneurysms, haemorrhages, soft_exudates. retina_sets.py says where images
and masks lie, and how they are split.

Images are cut to their field of view and scaled to 512 x 512, masks alike, as in the published preprocessing of Local
Discrimination (Chen et al. 2021, https://arxiv.org/abs/2108.09440): painted masks are 0 or 255 before they are scaled,
soft ones keep their shades, and what is above 0.3 afterwards is foreground (HRF: 0.01).
Validation is the first fifth of the training images by name. There is one class, fundus.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from data_shards.errors import UserError, nearest_of
from data_shards.field_of_view import fundus_region
from data_shards.sources import archival
from data_shards.sources.folder import child_folders
from data_shards.sources.listing import Listing, Record
from data_shards.sources.published import differences, left_out
from data_shards.sources.retina_sets import SETS, FundusSet, Pair
from data_shards.sources.splits import carve

CLASS = "fundus"
PUBLISHED_PX = 512


def read(
    path: Path, *, set: str = "", target: str = "", validation: float = 0.2, draw: str = "first", seed: int = 0
) -> Listing:
    """List one of the sets below PATH.

    `target` "" is the first that the set has. `draw` says which training images become validation: "first" (by name, as
    published) or "keyed" (by the seed). Raises UserError for a folder, set or target that is not known.
    """
    name, root = _found(path, set)
    kind = SETS[name]
    target = target or next(iter(kind.counts))
    if target not in kind.counts:
        raise UserError(
            f"{name} has no target '{target}'{nearest_of(target, list(kind.counts))}; use {', '.join(kind.counts)}."
        )
    pairs = kind.pairs(root, target)
    records = [_record(pair, pair.mask, kind, root) for pair in pairs if pair.mask is not None]
    if not records:
        raise UserError(f"{root} looks like {name}, but has no image with a mask of the target {target}.")
    notes = differences(records, {CLASS: kind.counts[target]}, f"the published {name} ({target})")
    notes += left_out("image", [pair.image.name for pair in pairs if pair.mask is None], f"without a mask of {target}")
    return Listing(
        name,
        (CLASS,),
        tuple(carve(records, validation, seed, draw=draw)),
        root,
        warnings=tuple(notes),
        default_size=PUBLISHED_PX,
        default_fit="stretch",
    )


def _found(path: Path, wanted: str) -> tuple[str, Path]:
    """Return the name of the set and its folder, which is PATH or one directly inside."""
    if wanted and wanted not in SETS:
        raise UserError(f"set={wanted} is unknown{nearest_of(wanted, list(SETS))}; use {', '.join(SETS)}.")
    names = [wanted] if wanted else [*SETS]
    told = ((folder, name) for folder in (path, *child_folders(path)) for name in names if SETS[name].is_at(folder))
    found = dict(reversed([*told]))  # of two names for one folder the first
    if len(set(found.values())) > 1:
        raise UserError(f"{path} holds several sets ({', '.join(found.values())}); name one by set=.")
    if not found:
        what = f"is not {wanted}" if wanted else f"is none of {', '.join(SETS)}"
        raise UserError(
            f"{path} {what} as published; e.g. it would hold {' and '.join(SETS[wanted or 'drive'].marks)}."
        )
    folder, name = found.popitem()
    return name, folder


def _record(pair: Pair, mask: Path, kind: FundusSet, root: Path) -> Record:
    return Record(
        pair.image.relative_to(root).as_posix(),
        CLASS,
        pair.split,
        pair.group,
        file=pair.image,
        load=partial(archival.pixels, pair.image),
        header=partial(archival.header, pair.image),
        mask=partial(archival.shades if kind.soft else archival.painted, mask),
        mask_above=kind.mask_above,
        beside=(mask,),
        region=fundus_region,
    )
