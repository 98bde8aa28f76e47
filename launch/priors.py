"""Prior masks for a critic of shapes: drawn ones, or a folder of masks that belong to no image of the run.

Legend: n masks, S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards import keyed
from data_shards.augment import AugmentConfig, draw
from data_shards.augment_batch import sampling_grid
from data_shards.decode import UInt8Array, Unreadable, load_image, read_bytes
from data_shards.errors import UserError
from data_shards.sandbox import Reply, Sandbox
from data_shards.shapes import VESSEL_SHARE, disc_mask, vessel_mask
from trainer.objectives.critic import Priors

DRAWN = {"vessels": vessel_mask, "discs": disc_mask}
_MOST_OF, _APART = (0.02, 0.2), 0.02  # shares that trees can be drawn to
THRESHOLD = 0.1  # of a mask that was interpolated
_MOTIONS = {"hflip": True, "vflip": True, "rotate_degrees": 180.0, "scale": (1.0, 1.25), "padding": "zeros"}


def shape_priors(name: str, side: int, seed: int, share: tuple[float, float] | None = None) -> Priors:
    """Return what gives the prior masks of a step, (n, S, S) float32 of 0 and 1; the same for the same step and places.

    `share` is the least and the most of a mask that drawn vessels take.

    Raises:
        UserError: neither a name nor a folder of masks, or a share that cannot be drawn.
    """
    if share is not None and (name != "vessels" or not _MOST_OF[0] <= share[0] <= share[1] - _APART <= _MOST_OF[1]):
        raise UserError(
            f"objective.local.shape.share: {share[0]} to {share[1]}: it is of the priors 'vessels', from {_MOST_OF[0]}"
            f" to {_MOST_OF[1]}, and {_APART} apart at least"
        )
    if name == "vessels":
        return _Drawn(partial(vessel_mask, share=share or VESSEL_SHARE), side, seed)
    if name in DRAWN:
        return _Drawn(DRAWN[name], side, seed)
    if not Path(name).is_dir():
        raise UserError(f"objective.local.shape.priors: {name} is neither {' nor '.join(DRAWN)} nor a folder")
    return _Kept(_read(Path(name)), side, seed)


class _Drawn:
    """For every place a new mask every eight steps, which are shown its eight flips and turns: drawing costs as much as
    a step of a small network, and what is drawn looks alike from all sides."""

    def __init__(self, make: Callable[[int, int, int], UInt8Array], side: int, seed: int) -> None:
        self.make, self.side, self.seed = make, side, seed

        self._kept: tuple[int, dict[int, UInt8Array]] = (-1, {})

    def __call__(self, step: int, places: npt.NDArray[np.int64]) -> Tensor:
        first, view = divmod(step, 8)
        if self._kept[0] != first:
            self._kept = (first, {})
        masks = [_seen(self._mask(first, int(place)), view) for place in places]
        return torch.from_numpy(np.stack(masks) > 0).float()

    def _mask(self, first: int, place: int) -> UInt8Array:
        kept = self._kept[1]
        if place not in kept:
            kept[place] = self.make(keyed.key(self.seed, "priors", first) >> 1, place, self.side)
        return kept[place]


def _seen(mask: UInt8Array, view: int) -> UInt8Array:
    """Return one of the eight views of a mask: 0 to 3 quarter turns, of it or of its mirror image."""
    return np.rot90(mask[:, ::-1] if view >= 4 else mask, view % 4)


class _Kept:
    """Masks of a folder, each flipped, turned, enlarged by up to a quarter, and brought to size."""

    def __init__(self, masks: list[npt.NDArray[np.uint8]], side: int, seed: int) -> None:
        self.masks, self.seed, self.config = masks, seed, AugmentConfig(side, channels=1, **_MOTIONS)  # type: ignore[arg-type]

    def __call__(self, step: int, places: npt.NDArray[np.int64]) -> Tensor:
        keys = keyed.fold(keyed.key(self.seed, "priors", step), places)
        chosen = (keyed.uniform(keys, 1)[:, 0] * len(self.masks)).astype(np.int64)
        grids = sampling_grid(draw(self.config, self.seed, step, places).warp, self.config.size)
        seen = [
            F.grid_sample(torch.from_numpy(self.masks[k])[None, None].float(), grid[None], align_corners=False)[0, 0]
            for k, grid in zip(chosen, grids, strict=True)
        ]
        return (torch.stack(seen) > 255 * THRESHOLD).float()


def _read(folder: Path) -> list[npt.NDArray[np.uint8]]:
    """Return the masks of a folder, (H, W) with 255 on the foreground, decoded in a process of their own."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise UserError(f"objective.local.shape.priors: {folder} holds no masks (.png, .jpg)")

    def decoded(place: int) -> Reply:
        image = load_image(read_bytes(paths[place]), 1)
        return {"shape": image.shape[:2]}, image.tobytes()

    masks = []
    with Sandbox(decoded) as sandbox:
        for path, answer in zip(paths, sandbox.run(list(range(len(paths)))), strict=True):
            if isinstance(answer, Unreadable):
                raise UserError(f"objective.local.shape.priors: {path}: {answer}")
            gray = np.frombuffer(answer[1], dtype=np.uint8).reshape(answer[0]["shape"])
            masks.append(np.where(gray > 0, np.uint8(255), np.uint8(0)))
    return masks
