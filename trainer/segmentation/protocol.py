"""How a method is judged: its threshold is chosen on images that it is then not scored on.

The threshold comes from the validation images that have a mask, the scores from those of the test split. Without masks
in a test split the validation images are halved by a key of the sample (of its group, where there are groups), the
same halves for every run, and one half chooses for the other.

Legend: N images with masks, n of them at a time, S x S pixels of the evaluation image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from data_shards import keyed
from data_shards.augment import AugmentConfig
from data_shards.errors import UserError
from data_shards.evaluation import image_view, mask_views
from data_shards.field_of_view import lit
from data_shards.reader import SplitReader
from trainer.segmentation.scores import Bools, Floats, Overlap, best_threshold, joined, overlap, sweep

Rows = npt.NDArray[np.int64]
Places = slice | Rows  # among the rows that something was made for
Maps = Callable[[Places], Tensor]  # -> (n, S, S) float32
MapMaker = Callable[[SplitReader, Rows], Maps]
NUM_THRESHOLDS = 401  # many are free, and Grad-CAM that is not stretched has most of its range in a few pixels
BLOCK = 32  # images at full size at a time


@dataclass(frozen=True)
class Masked:
    """Images of a split that have a mask: `rows` (N,), `masks` (N, S, S), and `name`, what they are.

    Outside of `field` (N, S, S), where there is one, nothing is predicted, whatever the maps say.
    """

    name: str
    reader: SplitReader
    rows: Rows
    masks: Bools
    field: Bools | None = None

    def inside(self, maps: Floats, places: Places) -> Floats:
        """Return maps (n, S, S) of some of the images with the least there is outside of the field."""
        return maps if self.field is None else np.where(self.field[places], maps, np.float32(-np.inf))

    def blocks(self) -> Iterator[slice]:
        """Yield the places 0..N-1 in pieces."""
        for start in range(0, len(self.rows), BLOCK):
            yield slice(start, min(start + BLOCK, len(self.rows)))


@dataclass(frozen=True)
class Method:
    """Something that gives maps. Of several `variants` the one that does best on the tuning images is scored.

    `threshold` None is chosen on the tuning images, too.
    """

    name: str
    variants: Mapping[str, MapMaker]
    threshold: float | None = None


@dataclass(frozen=True)
class Result:
    """What came of a method: `overlap` (N,) and `maps` are of the held-out images, `tuning_dice` a mean."""

    method: Method
    variant: str
    threshold: float
    tuning_dice: float
    overlap: Overlap
    maps: Maps


def splits(
    validation: SplitReader, test: SplitReader | None, config: AugmentConfig, only_lit: bool = False
) -> tuple[Masked, Masked, dict[str, int]]:
    """Return the images that choose thresholds, those that are scored, and {split: images without a mask}.

    With `only_lit` their field is what the camera shows between black borders.

    Raises:
        UserError: no masks to choose by, or too few to have some left.
    """
    readers = [reader for reader in (validation, test) if reader is not None]
    without = {reader.name: len(reader) - len(reader.masked_rows()) for reader in readers}
    if not validation.has_masks:
        raise UserError(
            "The validation split of these shards holds no masks to choose a threshold by and to score against: build"
            " them from a table with a column 'mask', or from phantoms."
        )
    rows = validation.masked_rows()
    if test is not None and test.has_masks:
        held_out = _masked(test.name, test, test.masked_rows(), config, only_lit)
        return _masked(validation.name, validation, rows, config, only_lit), held_out, without
    first = halves(validation, rows)
    if first.all() or not first.any():
        raise UserError(f"{len(rows)} validation images with a mask are too few to choose by one half for the other.")
    return (
        _masked("half of validation", validation, rows[first], config, only_lit),
        _masked("the other half of validation", validation, rows[~first], config, only_lit),
        without,
    )


def halves(reader: SplitReader, rows: Rows) -> Bools:
    """Return for every row (N,) whether it is in the first half; images of a group stay together.

    A run's seed has no part in it, so that every run is scored on the same images.
    """
    first_of_group: dict[str, int] = {}
    ids = reader.sample_ids[rows].copy()
    for place, group in enumerate(reader.groups[rows].tolist()):
        if group:
            ids[place] = first_of_group.setdefault(group, int(ids[place]))
    return np.asarray(keyed.uniform(keyed.fold(keyed.key(0, "segmentation halves"), ids), 1)[:, 0] < 0.5)


def _masked(name: str, reader: SplitReader, rows: Rows, config: AugmentConfig, only_lit: bool) -> Masked:
    field = lit_views(reader, rows, config) if only_lit else None
    return Masked(name, reader, rows, mask_views(reader, rows, config), field)


def lit_views(reader: SplitReader, rows: Rows, config: AugmentConfig) -> Bools:
    """Return (n, S, S): where the images are not black, as evaluation sees them."""
    return np.stack([lit(image_view(reader.image(int(row)), config)) for row in rows])


def judge(method: Method, tuning: Masked, held_out: Masked) -> Result:
    """Choose variant and threshold on the tuning images and score the held-out ones."""
    chosen = {
        name: _tuned(maker(tuning.reader, tuning.rows), method, tuning) for name, maker in method.variants.items()
    }
    variant = max(chosen, key=lambda name: chosen[name][1])  # the first of equals
    threshold, tuning_dice = chosen[variant]
    maps = method.variants[variant](held_out.reader, held_out.rows)
    return Result(method, variant, threshold, tuning_dice, _scored(maps, threshold, held_out), maps)


def _tuned(maps: Maps, method: Method, tuning: Masked) -> tuple[float, float]:
    """Return the threshold and its mean Dice on the tuning images."""
    if method.threshold is not None:
        return method.threshold, float(_scored(maps, method.threshold, tuning).dice.mean())
    blocks = (
        (maps(places), tuning.field if tuning.field is None else tuning.field[places]) for places in tuning.blocks()
    )
    known = (found.numpy() if field is None else found.numpy()[field] for found, field in blocks)
    ends = [(float(m.min()), float(m.max())) for m in known]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    thresholds = np.linspace(low, high, NUM_THRESHOLDS).astype(np.float32)
    inside = ((tuning.inside(maps(places).numpy(), places), tuning.masks[places]) for places in tuning.blocks())
    swept = [sweep(found, true, thresholds) for found, true in inside]
    return best_threshold(thresholds, joined(swept))


def _scored(maps: Maps, threshold: float, images: Masked) -> Overlap:
    inside = ((images.inside(maps(places).numpy(), places), images.masks[places]) for places in images.blocks())
    return joined([overlap(found >= threshold, true) for found, true in inside])
