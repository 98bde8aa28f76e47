"""Prior masks for a critic of shapes: drawn ones, or a folder of masks that belong to no image of the run.

Legend: n masks, S x S pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards import keyed
from data_shards.augment import AugmentConfig, draw
from data_shards.augment_batch import sampling_grid
from data_shards.decode import Unreadable, load_image, read_bytes
from data_shards.errors import UserError
from data_shards.sandbox import Reply, Sandbox
from data_shards.shapes import disc_mask, vessel_mask
from trainer.objectives.critic import Priors

DRAWN = {"vessels": vessel_mask, "discs": disc_mask}
THRESHOLD = 0.1  # of a mask that was interpolated
_MOTIONS = {"hflip": True, "vflip": True, "rotate_degrees": 180.0, "scale": (1.0, 1.25), "padding": "zeros"}


def shape_priors(name: str, side: int, seed: int) -> Priors:
    """Return what gives the prior masks of a step, (n, S, S) float32 of 0 and 1; the same for the same step and places.

    Raises:
        UserError: neither a name nor a folder of masks.
    """
    if name in DRAWN:
        return _Drawn(name, side, seed)
    if not Path(name).is_dir():
        raise UserError(f"objective.local.shape.priors: {name} is neither {' nor '.join(DRAWN)} nor a folder")
    return _Kept(_read(Path(name)), side, seed)


class _Drawn:
    """A new mask for every place of every step."""

    def __init__(self, name: str, side: int, seed: int) -> None:
        self.make, self.side, self.seed = DRAWN[name], side, seed

    def __call__(self, step: int, places: npt.NDArray[np.int64]) -> Tensor:
        masks = [self.make(keyed.key(self.seed, "priors", step) >> 1, int(place), self.side) for place in places]
        return torch.from_numpy(np.stack(masks) > 0).float()


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
